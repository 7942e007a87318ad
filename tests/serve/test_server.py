"""The command `loraqa serve`: it listens, answers, and stops cleanly."""

import json
import re
import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from loraqa.cli import main
from loraqa.errors import InputError
from loraqa.serve.server import address, listen, read_token


def test_a_port_in_use_is_reported_in_one_sentence() -> None:
    with listen("127.0.0.1", 0) as first:
        port = first.getsockname()[1]
        with pytest.raises(InputError, match=f"port {port} .[^(]*; stop the program .* --port"):
            listen("127.0.0.1", port)


def test_an_unknown_address_is_reported_in_one_sentence() -> None:
    with pytest.raises(InputError, match=r"\(.*\); choose another --host"):
        listen("no such host", 0)


def test_the_address_is_a_url() -> None:
    with listen("127.0.0.1", 0) as listener:
        assert re.fullmatch(r"http://127\.0\.0\.1:[1-9]\d*", address(listener))


@pytest.mark.skipif(not socket.has_ipv6, reason="no IPv6 here")
def test_ipv6_is_written_in_brackets() -> None:
    try:
        listener = listen("::1", 0)
    except InputError:
        pytest.skip("no IPv6 address here")
    with listener:
        assert re.fullmatch(r"http://\[::1\]:\d+", address(listener))


@pytest.mark.parametrize("package", ["fastapi", "uvicorn"])
def test_a_missing_extra_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    package: str,
) -> None:
    (tmp_path / "config.json").touch()
    for name in ("loraqa.serve", "loraqa.serve.app", "loraqa.serve.server"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.setitem(sys.modules, package, None)
    monkeypatch.setattr(sys, "argv", ["loraqa", "serve", str(tmp_path)])
    with pytest.raises(SystemExit) as stopped:
        main()
    assert stopped.value.code == 1
    error = capsys.readouterr().err
    assert f"needs {package}" in error
    assert "pip install -e '.[serve]'" in error


@pytest.mark.parametrize("host", ["", " ", "\t"])
@pytest.mark.parametrize("token", [None, "s3cret"])
def test_an_empty_host_is_refused_and_opens_nothing(host: str, token: str | None) -> None:
    with pytest.raises(InputError, match="--host is empty, which would open every interface; give"):
        listen(host, 0, token)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "0", "0x0", "0.0", "::ffff:0.0.0.0"])
def test_every_interface_needs_a_token(host: str) -> None:
    with pytest.raises(InputError, match="Other machines can reach .*; give a --token-file"):
        listen(host, 0)


@pytest.mark.parametrize("host", ["0.0.0.0", "0"])
def test_every_interface_is_opened_with_a_token(host: str) -> None:
    with listen(host, 0, "s3cret") as listener:
        assert listener.getsockname()[0] == "0.0.0.0"


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.8.8", "127.1", "localhost", "2130706433"])
def test_loopback_needs_no_token(host: str) -> None:
    with listen(host, 0) as listener:
        assert listener.getsockname()[0].startswith("127.")


def test_an_ipv4_address_written_as_ipv6_is_refused() -> None:
    with pytest.raises(InputError, match="; give a --token-file|; choose another --host"):
        listen("::ffff:127.0.0.1", 0)


def addresses(*found: str) -> Any:
    """Return a resolver of names to these addresses."""
    families = {True: socket.AF_INET6, False: socket.AF_INET}
    stream = socket.SOCK_STREAM
    return lambda *_, **__: [
        (families[":" in address], stream, 6, "", (address, 0)) for address in found
    ]


def test_the_address_that_is_listened_on_is_the_one_that_was_checked(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(socket, "getaddrinfo", addresses("::", "127.0.0.1", "0.0.0.0"))
    with listen("several.example", 0) as listener:
        assert listener.getsockname()[0] == "127.0.0.1"
    monkeypatch.setattr(socket, "getaddrinfo", addresses("::1", "0.0.0.0", "127.0.0.1"))
    with pytest.raises(InputError, match="Other machines can reach --host 'several.example'"):
        listen("several.example", 0)


@pytest.mark.parametrize("host", ["x" * 100_000, "a" * 70 + ".example", "\udcff", "a\x00b"])
def test_a_host_that_is_no_name_is_refused_in_a_short_sentence(host: str) -> None:
    with pytest.raises(InputError, match="choose another") as refused:
        listen(host, 0)
    assert len(str(refused.value)) < 300


@pytest.mark.parametrize("content", ["s3cret", "s3cret\n", "s3cret\r\n"])
def test_a_token_is_read_without_its_line_break(
    tmp_path: Path, content: str, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "token"
    path.touch(mode=0o600)
    path.write_bytes(content.encode())
    assert read_token(path) == "s3cret"
    assert not caplog.records


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o644])
def test_a_token_that_others_can_read_is_warned_about(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, mode: int
) -> None:
    path = tmp_path / "token"
    path.write_text("s3cret")
    path.chmod(mode)
    assert read_token(path) == "s3cret"
    assert "Other users can read" in caplog.text
    assert "chmod 600" in caplog.text
    assert "s3cret" not in caplog.text


@pytest.mark.parametrize(
    "content",
    ["", "\n", " ", "two words", " s3cret", "s3cret ", "a\nb\n", "\n\n", "ü", "a\x00", "x" * 1025],
)
def test_a_file_without_a_token_is_refused(tmp_path: Path, content: str) -> None:
    path = tmp_path / "token"
    path.write_text(content)
    with pytest.raises(InputError, match="token file .* must hold one line") as refused:
        read_token(path)
    assert str(path) in str(refused.value)


@pytest.mark.parametrize("name", ["gone", "."])
def test_an_unreadable_token_file_is_reported(tmp_path: Path, name: str) -> None:
    with pytest.raises(InputError, match="cannot be read .*; give another --token-file"):
        read_token(tmp_path / name)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--host", ""], "--host is empty"),
        (["--host", "0.0.0.0"], "--token-file"),
        (["--host", "0.0.0.0", "--token-file", "{tmp}/gone"], "cannot be read"),
    ],
)
def test_the_command_refuses_to_open_itself_before_it_loads(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    options: list[str],
    says: str,
) -> None:
    (tmp_path / "config.json").touch()
    arguments = [option.format(tmp=tmp_path) for option in options]
    monkeypatch.setattr(sys, "argv", ["loraqa", "serve", str(tmp_path), *arguments])
    with pytest.raises(SystemExit) as stopped:
        main()
    assert stopped.value.code == 2
    assert says in capsys.readouterr().err


# A server whose answers print "busy" when they begin, and never end.
ENDLESS = """
import logging, sys, threading
from types import SimpleNamespace
from loraqa.serve import server
from loraqa.serve.app import Served, create_app

def candidates(*_, **__):
    print("busy", file=sys.stderr, flush=True)
    threading.Event().wait()

logging.basicConfig(level=logging.INFO)
served = Served(base="b", adapter=None, template="t", max_length=1, max_answer_tokens=1)
with server.listen("127.0.0.1", 0) as listener:
    print("at", server.address(listener), file=sys.stderr, flush=True)
    server.run(create_app(SimpleNamespace(candidates=candidates), served), listener)
print("over", file=sys.stderr, flush=True)
"""


@pytest.mark.parametrize("second_after", ["Waiting for connections", "over"])
def test_a_second_ctrl_c_does_not_wait_for_an_answer(second_after: str) -> None:
    with (
        subprocess.Popen([sys.executable, "-c", ENDLESS], stderr=subprocess.PIPE, text=True) as it,
        ThreadPoolExecutor() as client,
    ):
        assert it.stderr
        lines = iter(it.stderr.readline, "")
        url = next(line.split()[1] for line in lines if line.startswith("at "))
        body = json.dumps({"context": "A king.", "questions": ["Who?"]}).encode()
        request = urllib.request.Request(
            f"{url}/api/answer", body, {"Content-Type": "application/json"}
        )
        reply = client.submit(urllib.request.urlopen, request)
        assert next(line for line in lines if line == "busy\n")
        it.send_signal(signal.SIGINT)
        assert next(line for line in lines if second_after in line)
        it.send_signal(signal.SIGINT)
        rest = it.stderr.read()
        assert it.wait() == -signal.SIGINT
        assert reply.exception()
    assert "Traceback" not in rest


def test_the_command_answers_until_ctrl_c(tiny_folder: Path, tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text("s3cret")
    command = [sys.executable, "-m", "loraqa", "serve", str(tiny_folder), "--port", "0"]
    command += ["--host", "0.0.0.0", "--token-file", str(token), "--allow-host", "qa.example"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as server:
        assert server.stderr
        lines = iter(server.stderr.readline, "")
        port = next(found[1] for line in lines if (found := re.search(r"http://.*:(\d+)", line)))
        url = f"http://127.0.0.1:{port}/api/answer"
        body = json.dumps({"context": "A king.", "questions": ["Who?"], "strategy": "span"})
        headers = {"Content-Type": "application/json", "Host": "qa.example"}
        request = urllib.request.Request(url, body.encode(), headers)
        with pytest.raises(urllib.error.HTTPError, match="401"):
            urllib.request.urlopen(request)
        request.add_header("Authorization", "Bearer s3cret")
        with urllib.request.urlopen(request) as reply:
            (answer,) = json.load(reply)["answers"]
        server.send_signal(signal.SIGINT)
        rest = server.stderr.read()
    assert answer["text"] == "A king."[answer["start"] : answer["end"]] != ""
    assert server.returncode == 0
    assert "Traceback" not in rest
