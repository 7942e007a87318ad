"""Files are whole or absent, killed processes leave nothing for long, and one process writes."""

import errno
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from loraqa import files
from loraqa.errors import FileError, InputError, explain
from loraqa.files import (
    append_line,
    contents,
    make_folder,
    one_writer,
    read_json,
    replacing,
    replacing_folder,
    sha256,
    temporary_folder,
    write_json,
    write_tensors,
    write_text,
)
from tests.conftest import full_disk


@contextmanager
def process_that(does: str, *arguments: Path) -> Iterator[subprocess.Popen[str]]:
    """Start a process that enters `does`, a context manager, and stays there until it is killed."""
    code = (
        "import sys, time; from pathlib import Path; from loraqa.files import *\n"
        "a = [Path(each) for each in sys.argv[1:]]\n"
        f"with {does}:\n    print('there', flush=True)\n    time.sleep(600)\n"
    )
    command = [sys.executable, "-c", code, *map(str, arguments)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "there\n"
            yield process
        finally:
            process.kill()


@pytest.mark.parametrize("does", ["replacing(a[0])", "replacing_folder(a[0])"])
def test_what_a_killed_process_left_is_removed_by_the_next(tmp_path: Path, does: str) -> None:
    with process_that(does, tmp_path / "file"):
        (unfinished,) = tmp_path.iterdir()
        write_text(tmp_path / "other", "text")
        assert unfinished.exists()
    assert unfinished.exists()
    write_text(tmp_path / "other", "text")
    assert list(tmp_path.iterdir()) == [tmp_path / "other"]


def test_temporary_folders_of_killed_processes_are_removed(tmp_path: Path) -> None:
    with process_that("temporary_folder(a[0])", tmp_path):
        (left,) = tmp_path.iterdir()
        (left / "file").touch()
    with temporary_folder(tmp_path) as folder:
        assert list(tmp_path.iterdir()) == [folder]
    assert list(tmp_path.iterdir()) == []


def test_nothing_unfinished_is_renamed_along(tmp_path: Path) -> None:
    """A failing disk may keep a temporary folder inside from being removed."""
    with files.replacing_folder(tmp_path / "folder") as folder:
        write_text(folder / "file", "text")
        (folder / ".loraqa-unfinished-x").mkdir()
    assert [path.name for path in (tmp_path / "folder").iterdir()] == ["file"]


def test_a_folder_that_is_swept_before_it_is_locked_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make = files.tempfile.mkdtemp
    made: list[str] = []

    def swept_once(prefix: str, dir: Path) -> str:
        made.append(make(prefix=prefix, dir=dir))
        if len(made) == 1:
            files.sweep(tmp_path)
        return made[-1]

    monkeypatch.setattr(files.tempfile, "mkdtemp", swept_once)
    write_text(tmp_path / "file", "text")
    assert len(made) == 2
    assert (tmp_path / "file").read_text() == "text"


def test_files_of_users_are_not_swept(tmp_path: Path) -> None:
    (tmp_path / ".loraqa-unfinished-notes").write_text("a file, not a folder")
    (tmp_path / "outside").mkdir()
    (tmp_path / ".loraqa-unfinished-link").symlink_to(tmp_path / "outside")
    (tmp_path / ".file.backup").mkdir()
    before = sorted(tmp_path.iterdir())
    write_text(tmp_path / "file", "text")
    assert sorted({*tmp_path.iterdir()} - {tmp_path / "file"}) == before


def test_every_folder_is_seen_after_something_is_made_in_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Replay the flushes: each must come when its folder holds what it holds at the end."""
    seen: dict[Path, set[str]] = {}
    flush = os.fsync

    def noted(descriptor: int) -> None:
        path = Path(f"/proc/self/fd/{descriptor}").readlink()
        seen[path] = {inside.name for inside in path.iterdir()} if path.is_dir() else set()
        flush(descriptor)

    if not Path("/proc/self/fd").exists():
        pytest.skip("the system does not tell the paths of open files")
    monkeypatch.setattr(os, "fsync", noted)
    write_text(tmp_path / "a" / "b" / "file", "text")
    make_folder(tmp_path / "c")
    append_line(tmp_path / "c" / "lines", "line")
    with replacing_folder(tmp_path / "d") as folder:
        (folder / "e").mkdir()
        (folder / "e" / "file").touch()
    for made in (tmp_path / "a", tmp_path / "a" / "b", tmp_path / "a/b/file", tmp_path / "c/lines"):
        assert made.name in seen[made.parent]
    assert {"a", "c", "d"} <= seen[tmp_path]
    assert [names for path, names in seen.items() if path.name == "e"] == [{"file"}]
    assert [names for path, names in seen.items() if path.name == "d"] == [{"e"}]


def test_a_replaced_folder_is_kept_if_the_new_one_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "folder"
    with replacing_folder(path) as folder:
        (folder / "old").touch()
    rename = Path.rename

    def fail(self: Path, target: Path) -> Path:
        if target == path and not target.exists() and (self / "new").exists():
            raise OSError(errno.EIO, "Input/output error", str(self))
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", fail)
    with pytest.raises(FileError, match="folder cannot be written"), replacing_folder(path) as new:
        (new / "new").touch()
    assert [inside.name for inside in path.iterdir()] == ["old"]
    assert list(tmp_path.iterdir()) == [path]


def test_errors_name_the_file_and_what_was_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "file.json"
    with full_disk(room=10), pytest.raises(FileError) as caught:
        write_json(path, "a text that is too long")
    assert explain(caught.value) == (f"{path} cannot be written (File too large).", 1)

    with (
        full_disk(room=10),
        pytest.raises(FileError) as caught,
        replacing_folder(tmp_path / "f") as f,
    ):
        write_json(f / "inner" / "file.json", "a text that is too long")
    inner = tmp_path / "f" / "inner" / "file.json"
    assert explain(caught.value) == (f"{inner} cannot be written (File too large).", 1)

    with full_disk(room=10), pytest.raises(FileError) as caught:
        append_line(path, "a text that is too long")
    assert explain(caught.value) == (f"{path} cannot be written (File too large).", 1)

    def no_space(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", no_space)
    with pytest.raises(FileError) as caught:
        write_text(path, "text")
    assert explain(caught.value) == (
        f"{path} cannot be written (No space left on device); free some space there.",
        1,
    )

    with pytest.raises(FileError) as caught:
        sha256(tmp_path)
    assert explain(caught.value) == (f"{tmp_path} cannot be read (Is a directory).", 1)
    with pytest.raises(FileError) as caught:
        read_json(tmp_path)
    assert explain(caught.value) == (f"{tmp_path} cannot be read (Is a directory).", 1)
    with pytest.raises(InputError, match="nothing.json does not exist"):
        read_json(tmp_path / "nothing.json")


def test_errors_of_safetensors_are_those_of_the_system(tmp_path: Path) -> None:
    path = tmp_path / "file.safetensors"
    with full_disk(room=100), pytest.raises(FileError) as caught:
        write_tensors(path, {"zeros": torch.zeros(1000)})
    assert caught.value.errno == errno.EFBIG
    assert explain(caught.value) == (f"{path} cannot be written (File too large).", 1)
    assert list(tmp_path.iterdir()) == []


def test_an_error_about_another_file_names_that_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError) as caught, replacing(tmp_path / "file"):
        (tmp_path / "source").read_text()
    assert explain(caught.value) == (f"{tmp_path / 'source'}: No such file or directory.", 1)


def test_one_process_writes_to_a_folder_until_it_dies(tmp_path: Path) -> None:
    folder = tmp_path / "new"
    with process_that("one_writer(a[0])", folder):
        assert contents(folder) == []
        with pytest.raises(InputError) as caught, one_writer(folder):
            pass
        assert str(caught.value) == (
            f"Another process is writing to {folder}; wait until it has ended, or name another "
            "folder."
        )
    with one_writer(folder):
        (folder / "file").touch()
        assert contents(folder) == [folder / "file"]
    assert [path.name for path in folder.iterdir()] == ["file"]


def test_a_writer_that_wrote_nothing_leaves_no_new_folder(tmp_path: Path) -> None:
    with one_writer(tmp_path / "new"), pytest.raises(InputError), one_writer(tmp_path / "new"):
        pass
    assert list(tmp_path.iterdir()) == []
    with one_writer(tmp_path):
        pass
    assert tmp_path.exists()


def test_a_folder_that_cannot_be_locked_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with (
        pytest.raises(FileError, match="file/.lock cannot be locked"),
        one_writer(tmp_path / "file"),
    ):
        pass


def test_json_that_cannot_be_written_again_is_not_read(tmp_path: Path) -> None:
    (tmp_path / "file").write_text('{"text": "\\ud800"}')
    with pytest.raises(InputError, match="file is not valid JSON"):
        read_json(tmp_path / "file")
