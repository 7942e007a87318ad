"""Readers refuse or read generated documents, and the study notices what goes wrong."""

import logging
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from random import Random

import pytest

from loraqa.errors import InputError
from loraqa.squad import read_passages
from reliability import documents, fuzz


@pytest.fixture(autouse=True)
def silent() -> Iterator[None]:
    """Log no problems of thousands of documents."""
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)


def test_every_reader_refuses_or_reads() -> None:
    command = [sys.executable, "-m", "reliability", "fuzz", "--documents", "480", "--seconds", "1"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    counts = dict(line.rsplit(maxsplit=4)[::4] for line in done.stdout.splitlines()[1:])
    read, refused = done.stdout.splitlines()[-1].split()[1:5:3]
    assert {kind.name for kind in fuzz.kinds(Path())} <= counts.keys()
    assert int(refused) < 0.9 * int(read)


def raising(_: Path) -> None:
    raise KeyError("a bug")


def hanging(_: Path) -> None:
    time.sleep(5)


def talkative(_: Path) -> None:
    raise InputError("bad " * 5000)


def mumbling(_: Path) -> None:
    raise InputError("bad")


def sound(path: Path) -> None:
    raise InputError(f"{path} is wrong; correct it.")


@pytest.mark.parametrize(
    ("read", "failure"),
    [
        (raising, "KeyError: 'a bug'"),
        (hanging, "it took more than 0 s"),
        (talkative, "the message has 20000 characters"),
        (mumbling, "the message is no sentence: 'bad'"),
        (sound, "None"),
    ],
)
def test_what_goes_wrong_is_told(
    read: Callable[[Path], None], failure: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fuzz, "_LIMIT", 0.2)
    kind = replace(fuzz.kinds(tmp_path)[0], read=read)
    found, refused = fuzz._try(kind, tmp_path, b"{}")
    assert failure in str(found)
    assert refused is (read not in (raising, hanging))


def test_documents_follow_from_their_number(tmp_path: Path) -> None:
    for kind in fuzz.kinds(tmp_path):
        assert kind.document(Random("1")) == kind.document(Random("1"))


def test_unchanged_documents_are_mostly_right(tmp_path: Path) -> None:
    """Otherwise the readers' checks would be all that is tried."""
    path = tmp_path / "data.json"
    right = 0
    for number in range(50):
        chance = Random(number)
        path.write_bytes(documents.as_json(documents.official(chance), chance))
        try:
            right += bool(read_passages(path, on_bad="skip").passages)
        except InputError:
            continue
    assert right > 30
