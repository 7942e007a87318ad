"""A kept file is whole or not there."""

from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from loraqa.cache import find_kept, keep, keep_folder
from loraqa.files import cache_folder, temporary_folder
from tests.conftest import full_disk


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LORAQA_CACHE", str(tmp_path))


def kept(content: bytes) -> Path:
    """Keep a file, and return it."""
    path = keep("kind", "key", ".bin", lambda path: path.write_bytes(content))
    assert path is not None
    return path


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(content=st.binary(), other=st.binary())
def test_only_the_content_that_was_kept_is_found(content: bytes, other: bytes) -> None:
    path = kept(content)
    assert find_kept("kind", "key", ".bin") == path
    assert path.read_bytes() == content
    path.write_bytes(other)
    assert find_kept("kind", "key", ".bin") == (path if other == content else None)
    assert path.exists() == (other == content)
    path.unlink(missing_ok=True)


def test_looking_for_a_kept_file_removes_what_a_killed_process_left() -> None:
    path = kept(b"content")
    left = path.parent / ".loraqa-unfinished-left"
    left.mkdir()
    (left / "new.bin").write_bytes(b"half")
    with temporary_folder(path.parent) as in_use:
        left.mkdir(exist_ok=True)
        assert find_kept("kind", "key", ".bin") == path
        assert not left.exists()
        assert in_use.exists()


def test_keys_kinds_and_endings_are_told_apart() -> None:
    kept(b"content")
    assert find_kept("kind", "ke", ".bin") is None
    assert find_kept("other", "key", ".bin") is None
    assert find_kept("kind", "key", ".so") is None


def test_nothing_is_left_of_a_file_that_does_not_fit() -> None:
    with full_disk(room=100):
        assert keep("kind", "key", ".bin", lambda path: path.write_bytes(bytes(1000))) is None
    assert list(cache_folder("kind").iterdir()) == []


def test_what_a_killed_process_left_is_removed() -> None:
    left = cache_folder("kind") / ".loraqa-unfinished-x"
    left.mkdir(parents=True)
    (left / "new.bin").write_bytes(b"cont")
    assert find_kept("kind", "key", ".bin") is None
    path = kept(b"content")
    assert list(path.parent.iterdir()) == [path]


def write_model(folder: Path) -> None:
    (folder / "config.json").write_text("{}")
    (folder / "weights").write_bytes(b"0123")


def test_another_process_may_keep_the_same_at_the_same_time(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    rename = Path.replace
    kept = []

    def after_another(self: Path, target: Path) -> Path:
        # The last name holds a hash.
        if len(target.name) > 64 and not kept:
            kept.append(None)
            kept[0] = keep("kind", "key", ".bin", lambda path: path.write_bytes(b"theirs"))
        return rename(self, target)

    monkeypatch.setattr(Path, "replace", after_another)
    ours = keep("kind", "key", ".bin", lambda path: path.write_bytes(b"ours"))
    assert ours is not None
    assert ours.read_bytes() == b"ours"
    assert sorted(cache_folder("kind").iterdir()) == sorted([ours, *kept])
    assert not caplog.messages


def test_a_folder_is_kept_like_a_file() -> None:
    folder = keep_folder("kind", "key", write_model)
    assert find_kept("kind", "key") == folder
    assert (folder / "weights").read_bytes() == b"0123"


@pytest.mark.parametrize("damage", ["changed", "cut", "missing", "renamed", "more"])
def test_a_folder_with_any_damage_is_removed(damage: str) -> None:
    folder = keep_folder("kind", "key", write_model)
    if damage == "missing":
        (folder / "config.json").unlink()
    elif damage == "renamed":
        (folder / "weights").rename(folder / "weight")
    else:
        name = "added" if damage == "more" else "weights"
        (folder / name).write_bytes(b"012" if damage == "cut" else b"0124")
    assert find_kept("kind", "key") is None
    assert not folder.exists()
    assert find_kept("kind", "key") is None
    assert keep_folder("kind", "key", write_model) == folder


def test_a_folder_that_cannot_be_kept_leaves_nothing() -> None:
    with full_disk(room=3), pytest.raises(OSError, match="cannot be written"):
        keep_folder("kind", "key", write_model)
    assert list(cache_folder("kind").iterdir()) == []


def test_without_a_cache_folder_nothing_is_kept(tmp_path: Path) -> None:
    (tmp_path / "kind").write_text("a file")
    assert keep("kind", "key", ".bin", lambda path: path.write_bytes(b"content")) is None
    assert find_kept("kind", "key", ".bin") is None


def test_a_cache_that_cannot_be_written_is_named_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "kind").write_text("a file")
    with caplog.at_level("INFO", logger="loraqa"):
        for _ in range(3):
            assert keep("kind", "key", ".bin", lambda path: path.write_bytes(b"content")) is None
    assert caplog.messages == [
        f"Nothing can be kept in {tmp_path / 'kind'} (File exists), so the work is repeated at "
        "every start; name another folder in LORAQA_CACHE."
    ]
