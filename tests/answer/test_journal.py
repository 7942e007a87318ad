"""Journals: an interrupted work goes on with the same answers, whatever happened to the file."""

import json
import logging
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from tests.answer.conftest import DATA, stopping_model
from tests.conftest import full_disk

from loraqa.answer.beam import BeamSearch
from loraqa.answer.compare import compare
from loraqa.answer.evaluate import evaluate
from loraqa.answer.journal import Journal, Stopwatch
from loraqa.answer.reader import Reader
from loraqa.answer.strategies import STRATEGIES, parse_strategy
from loraqa.errors import InputError
from loraqa.files import cache_folder
from loraqa.model.runner import TreeRunner
from loraqa.prompt.segments import SegmentTokenizer
from loraqa.prompt.template import Template
from loraqa.reader import Reader as LoadedReader
from loraqa.squad import QADataset


class _Interrupted(BaseException):
    """Not an `Exception`, like `KeyboardInterrupt`."""


class _Counted(TreeRunner):
    """Counts batches, and raises at one of them."""

    def prefill(self, trees: Any) -> Any:
        COUNT[0] += 1
        if COUNT[0] == COUNT[1]:
            raise _Interrupted
        return super().prefill(trees)


# Number of batches so far, and the number of the batch that is interrupted.
COUNT = [0, 0]


@contextmanager
def interrupted(path: Path) -> Iterator[Journal]:
    """A journal that is left by an interruption, at the end if not before."""
    with suppress(_Interrupted), Journal(path, "model") as journal:
        yield journal
        raise _Interrupted


@pytest.fixture(scope="module")
def reader(segments: SegmentTokenizer) -> Reader:
    """A reader that answers one or two questions in a batch."""
    runner = _Counted(stopping_model("gpt2", "float32"))
    return Reader(runner, segments, Template(), 120, 20, max_answer_tokens=12, tokens_per_batch=140)


@pytest.fixture
def batches(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Start to count batches; the returned function sets which one is interrupted."""
    monkeypatch.setattr(f"{__name__}.COUNT", [0, 0])

    def interrupt(batch: int) -> None:
        COUNT[:] = 0, batch

    return interrupt


def count_batches(reader: Reader, batches: Callable[[int], None], strategy: str) -> int:
    batches(0)
    evaluate(reader, DATA, parse_strategy(strategy))
    return COUNT[0]


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_an_interrupted_evaluation_goes_on_to_the_same_result(
    reader: Reader, batches: Callable[[int], None], tmp_path: Path, strategy: str
) -> None:
    """It is interrupted at every batch in turn, and again at the next one."""
    path, decoding = tmp_path / "journal", parse_strategy(strategy)
    total = count_batches(reader, batches, strategy)
    assert total >= 3
    whole = evaluate(reader, DATA, decoding, seed=5)
    for batch in range(1, total + 1):
        # A journal goes on at the batch that was interrupted, which is then the first computed.
        batches(batch)
        with interrupted(path) as journal:
            evaluate(reader, DATA, decoding, seed=5, journal=journal)
        batches(2)
        if batch < total:
            with interrupted(path) as journal:
                evaluate(reader, DATA, decoding, seed=5, journal=journal)
        batches(0)
        with Journal(path, "model") as journal:
            result = evaluate(reader, DATA, decoding, seed=5, journal=journal)
        assert COUNT[0] == max(total - batch, 1)
        assert (result.answers, result.scores) == (whole.answers, whole.scores)
        assert not path.exists()


def test_an_interrupted_comparison_goes_on_to_the_same_result(
    reader: Reader, batches: Callable[[int], None], tmp_path: Path
) -> None:
    strategies = [parse_strategy(name) for name in ("greedy", "temperature:3", "span")]
    whole = compare(reader, DATA, strategies, samples=3)
    batches(count_batches(reader, batches, "greedy") + 2)
    with interrupted(tmp_path / "journal") as journal:
        compare(reader, DATA, strategies, samples=3, journal=journal)
    computed = COUNT[0] - 1
    batches(0)
    with Journal(tmp_path / "journal", "model") as journal:
        result = compare(reader, DATA, strategies, samples=3, journal=journal)
    assert [replace(row, seconds=0) for row in result] == [replace(row, seconds=0) for row in whole]
    rest = COUNT[0]
    batches(0)
    compare(reader, DATA, strategies, samples=3)
    assert (computed > 1, computed + rest) == (True, COUNT[0])


def kept(reader: Reader, path: Path) -> list[str]:
    """Leave a journal of a whole evaluation; return its lines."""
    with interrupted(path) as journal:
        evaluate(reader, DATA, journal=journal)
    return path.read_text().splitlines(keepends=True)


@pytest.mark.parametrize("damage", ["cut", "no line break", "flipped", "zeros", "junk", "digits"])
def test_damaged_lines_alone_are_computed_again(
    reader: Reader, batches: Callable[[int], None], tmp_path: Path, damage: str
) -> None:
    path = tmp_path / "journal"
    lines = kept(reader, path)
    last = lines[-1].encode()
    place = last.index(b'"result"')
    ends = {
        "cut": last[:-20],
        "no line break": last[:-1],
        "flipped": last[:place] + last[place:].replace(b"1", b"2", 1),
        "zeros": bytes(len(last)),
        "junk": b'[1]\n"x"\n{}\n\xff\xfe\n' + b"[" * 100_000 + b"\n",
        "digits": b'{"sha256": ' + b"9" * 10_000 + b"}\n",
    }
    path.write_bytes("".join(lines[:-1]).encode() + ends[damage])
    batches(0)
    whole = evaluate(reader, DATA)
    batches(0)
    with interrupted(path) as journal:
        result = evaluate(reader, DATA, journal=journal)
    assert COUNT[0] == (0 if damage == "no line break" else 1)
    assert result.answers == whole.answers
    after = path.read_text().splitlines(keepends=True)
    assert after[:-1] == lines[:-1]
    assert json.loads(after[-1])["result"] == json.loads(lines[-1])["result"]


def test_no_flipped_byte_changes_an_answer(reader: Reader, tmp_path: Path) -> None:
    path = tmp_path / "journal"
    line = kept(reader, path)[0].encode()
    entry = json.loads(line)
    batch, result = entry["batch"], entry["result"]
    for place in range(0, len(line) - 1, 7):
        path.write_bytes(line[:place] + bytes([line[place] ^ 1]) + line[place + 1 :])
        with Journal(path, "model") as journal:
            # The last digits of two texts may be those of the same float.
            assert journal.once(batch, lambda: "computed") in ("computed", result), place


@pytest.mark.parametrize(
    "change",
    [
        {"max_answer_tokens": 11},
        {"template": Template("{context}\n{question} So: {answer}")},
    ],
    ids=str,
)
def test_other_prompts_and_rules_get_other_answers(
    reader: Reader, batches: Callable[[int], None], tmp_path: Path, change: dict[str, Any]
) -> None:
    kept(reader, tmp_path / "journal")
    other = replace(reader, **change)
    batches(0)
    with Journal(tmp_path / "journal", "model") as journal:
        result = evaluate(other, DATA, journal=journal)
    assert COUNT[0] > 0
    assert result.answers == evaluate(other, DATA).answers


@pytest.mark.parametrize("change", ["identity", "strategy", "seed", "answers", "beams"])
def test_another_model_strategy_or_seed_gets_other_answers(
    reader: Reader, batches: Callable[[int], None], tmp_path: Path, change: str
) -> None:
    first = BeamSearch(3) if change == "beams" else parse_strategy("top-k:5")
    others = {"strategy": parse_strategy("top-k:6"), "beams": BeamSearch(3, length_penalty=0.0)}
    with interrupted(tmp_path / "journal") as journal:
        reader.read(DATA.passages, first, journal=journal)
    read = partial(
        reader.read,
        DATA.passages,
        others.get(change, first),
        seed=int(change == "seed"),
        answers=1 + (change == "answers"),
    )
    batches(0)
    with Journal(tmp_path / "journal", "other" if change == "identity" else "model") as journal:
        answers = read(journal=journal)
    computed = COUNT[0]
    batches(0)
    assert answers == read()
    assert computed == COUNT[0]


@pytest.mark.parametrize("part", ["context", "question", "id"])
def test_changed_data_keep_the_answers_to_batches_that_did_not_change(
    reader: Reader, batches: Callable[[int], None], tmp_path: Path, part: str
) -> None:
    lines = kept(reader, tmp_path / "journal")
    first, *others = DATA.passages
    question, *more = first.questions
    # Of the same length, so that windows and batches stay as they were.
    changed = {
        "context": replace(first, context=first.context.replace("old", "new")),
        "question": replace(
            first, questions=(replace(question, text="How built the mill?"), *more)
        ),
        "id": replace(first, questions=(replace(question, id="other"), *more)),
    }
    data = QADataset.from_passages([changed[part], *others], "1.1")
    batches(0)
    with Journal(tmp_path / "journal", "model") as journal:
        result = evaluate(reader, data, journal=journal)
    assert 0 < COUNT[0] < len(lines)
    assert result.answers == evaluate(reader, data).answers


def test_an_interruption_says_what_is_kept(
    reader: Reader, batches: Callable[[int], None], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "journal"
    caplog.set_level(logging.INFO, "loraqa")
    batches(1)
    with interrupted(path) as journal:
        evaluate(reader, DATA, journal=journal)
    assert caplog.messages == ["No answers were kept yet; do the same again to start anew."]
    caplog.clear()
    batches(2)
    with interrupted(path) as journal:
        evaluate(reader, DATA, journal=journal)
    stays = f"The answers so far are kept in {path}; do the same again to go on from there."
    assert caplog.messages == [stays]
    with Journal(path, "model") as journal:
        evaluate(reader, DATA, journal=journal)
    assert caplog.messages == [stays, f"Going on with the answers in {path}."]


@pytest.mark.parametrize("obstacle", ["disk", "folder", "file"])
def test_a_journal_that_cannot_be_written_is_a_warning(
    reader: Reader, tmp_path: Path, caplog: pytest.LogCaptureFixture, obstacle: str
) -> None:
    path = tmp_path / "folder" / "journal"
    (path if obstacle == "folder" else path.parent / "x").mkdir(parents=True)
    if obstacle == "file":
        path = path.parent / "x" / "file" / "journal"
        path.parent.write_text("no folder")
    expected = evaluate(reader, DATA).answers
    with full_disk(600 if obstacle == "disk" else 10_000_000), Journal(path, "model") as journal:
        assert evaluate(reader, DATA, journal=journal).answers == expected
    (warning,) = caplog.messages
    assert warning.startswith(f"{path} cannot be written (")
    assert [p for p in tmp_path.rglob("*") if p.is_file() and p.name != "file"] == []


def test_time_before_an_interruption_counts(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    with interrupted(path) as journal:
        journal.once("slow", lambda: None)
    with Journal(path, "model") as journal:
        journal._entries["slow"]["seconds"] = 100.0
        stopwatch = Stopwatch(journal)
        journal.once("slow", lambda: None)
        assert 100 <= stopwatch.seconds < 110
    assert Stopwatch(None).seconds < 1


def test_the_cache_keeps_the_newest_journals(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LORAQA_CACHE", str(tmp_path))
    folder = cache_folder("answers")
    folder.mkdir(parents=True)
    for number in range(30):
        path = folder / f"{number}.journal"
        path.touch()
        os.utime(path, (number, number))
    first = Journal.in_cache("model", "data", 1)
    assert sorted(int(path.stem) for path in folder.iterdir()) == list(range(10, 30))
    assert first.path.parent == folder
    paths = {first.path, Journal.in_cache("model", "data", 1).path}
    others = {Journal.in_cache("model", "data", 2).path, Journal.in_cache("m", "data", 1).path}
    assert (len(paths), len(others), paths & others) == (1, 2, set())


def test_without_a_home_folder_the_journal_is_in_the_working_directory(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def homeless() -> Path:
        raise RuntimeError("no home")

    monkeypatch.delenv("LORAQA_CACHE")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(Path, "home", homeless)
    assert Journal.in_cache("model", "data", 1).path.parent == Path()


class TestIdentity:
    """`Reader.identify` tells apart everything that changes an answer besides the prompts."""

    def test_it_is_the_same_for_the_same_run(self, run: Path) -> None:
        first, second = (LoadedReader.load(run).identify() for _ in range(2))
        assert first == second

    def test_it_changes_with_the_adapter(self, run: Path) -> None:
        before = LoadedReader.load(run).identify()
        tensors = run / "adapter" / "adapter_model.safetensors"
        data = bytearray(tensors.read_bytes())
        data[-3] ^= 1
        tensors.write_bytes(data)
        # Without its hashes, loraqa.json vouches for any tensors.
        info = run / "adapter" / "loraqa.json"
        info.write_text(json.dumps(json.loads(info.read_text()) | {"sha256": None}))
        assert LoadedReader.load(run).identify() != before

    def test_it_changes_with_dtype_and_accelerations(self, run: Path) -> None:
        plain = LoadedReader.load(run, without="all")
        others = [LoadedReader.load(run), LoadedReader.load(run, without="all", dtype="float64")]
        assert len({reader.identify() for reader in (plain, *others)}) == 3

    def test_it_changes_with_the_weights_of_a_model(
        self, tiny_folder: Path, tmp_path: Path
    ) -> None:
        shutil.copytree(tiny_folder, tmp_path / "model")
        before = LoadedReader.load(tmp_path / "model").identify()
        weights = tmp_path / "model" / "model.safetensors"
        data = bytearray(weights.read_bytes())
        data[-3] ^= 1
        weights.write_bytes(data)
        assert LoadedReader.load(tmp_path / "model").identify() != before

    def test_a_reader_made_by_hand_has_none(self, reader: Reader, segments: Any) -> None:
        with pytest.raises(InputError, match=r"load it with Reader\.load"):
            LoadedReader(reader.runner, segments, Template(), 100).identify()
