"""Hub names: which names are hub names, which split is read; files never use the network."""

import json
import socket
from pathlib import Path
from typing import Any

import datasets
import huggingface_hub.constants
import pytest

from loraqa.errors import InputError
from loraqa.squad import read_passages

RECORD = {
    "id": "1",
    "title": "T",
    "context": "Oslo is the capital.",
    "question": "Which?",
    "answers": {"text": ["Oslo"], "answer_start": [0]},
}


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """Replace the hub by one record; return the requested names and splits."""
    calls: list[tuple[str, str]] = []

    def load_dataset(name: str, *, split: str) -> datasets.Dataset:
        calls.append((name, split))
        return datasets.Dataset.from_list([RECORD])

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    return calls


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Disable the network; return the attempts to use it."""
    attempts: list[Any] = []

    def refuse(*args: Any, **_: Any) -> Any:
        attempts.append(args)
        raise OSError("network is unreachable")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)
    return attempts


@pytest.mark.parametrize(
    ("source", "split", "expected"),
    [
        ("rajpurkar/squad", "validation", ("rajpurkar/squad", "validation")),
        ("rajpurkar/squad", "train", ("rajpurkar/squad", "train")),
        ("rajpurkar/squad:train", "validation", ("rajpurkar/squad", "train")),
        ("rajpurkar/squad_v2:train[:10]", "train", ("rajpurkar/squad_v2", "train[:10]")),
    ],
)
def test_the_split_in_the_name_wins_over_the_argument(
    asked: list[Any], source: str, split: str, expected: tuple[str, str]
) -> None:
    data = read_passages(source, split=split)
    assert asked == [expected]
    assert (data.source, data.version) == (source, "1.1")
    assert data.passages[0].questions[0].answers[0].text == "Oslo"


def test_bad_records_of_the_hub_are_reported(
    asked: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(RECORD, "question", "")
    with pytest.raises(InputError, match="a/b: row 0, id '1': the question is empty"):
        read_passages("a/b")
    assert asked == [("a/b", "validation")]


def test_an_unreachable_hub_is_reported_at_once_in_one_sentence(
    no_network: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """`load_dataset`, which would retry for half a minute, is not called."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: pytest.fail("it was called"))
    with pytest.raises(InputError) as caught:
        read_passages("rajpurkar/squad")
    message = str(caught.value)
    assert no_network
    assert "'rajpurkar/squad' cannot be read from the Hugging Face hub" in message
    assert "local file" in message
    assert "\n" not in message


@pytest.mark.parametrize(
    "name", ["none.json", "./owner/name", "/owner/name", "owner/name.json", "here/none", "name"]
)
def test_a_local_path_never_uses_the_network(
    no_network: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "here").mkdir()
    with pytest.raises(InputError, match="does not exist"):
        read_passages(name)
    assert not no_network


def test_an_existing_file_wins_over_a_hub_name(
    no_network: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "owner").mkdir()
    (tmp_path / "owner" / "name").write_text(json.dumps(RECORD))
    assert len(read_passages("owner/name").order) == 1
    assert not no_network
