"""The command `loraqa serve`: it listens, answers, and stops cleanly."""

import json
import re
import signal
import socket
import subprocess
import sys
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from loraqa.cli import main
from loraqa.errors import InputError
from loraqa.serve.server import address, listen


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


# A server whose answers print "busy" when they begin, and never end.
ENDLESS = """
import logging, sys, threading
from types import SimpleNamespace
from loraqa.serve import server
from loraqa.serve.app import Served, create_app

def answer(*_, **__):
    print("busy", file=sys.stderr, flush=True)
    threading.Event().wait()

logging.basicConfig(level=logging.INFO)
served = Served(base="b", adapter=None, template="t", max_length=1, max_answer_tokens=1)
with server.listen("127.0.0.1", 0) as listener:
    print("at", server.address(listener), file=sys.stderr, flush=True)
    server.run(create_app(SimpleNamespace(answer=answer), served), listener)
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


def test_the_command_answers_until_ctrl_c(tiny_folder: Path) -> None:
    command = [sys.executable, "-m", "loraqa.cli", "serve", str(tiny_folder), "--port", "0"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as server:
        assert server.stderr
        lines = iter(server.stderr.readline, "")
        url = next(found[0] for line in lines if (found := re.search(r"http://[\d.:]+", line)))
        body = json.dumps({"context": "A king.", "questions": ["Who?"], "strategy": "span"})
        request = urllib.request.Request(
            f"{url}/api/answer", body.encode(), {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request) as reply:
            (answer,) = json.load(reply)["answers"]
        server.send_signal(signal.SIGINT)
        rest = server.stderr.read()
    assert answer["text"] == "A king."[answer["start"] : answer["end"]] != ""
    assert server.returncode == 0
    assert "Traceback" not in rest
