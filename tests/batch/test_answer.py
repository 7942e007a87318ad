"""Files are answered as the reader answers, row by row, and a killed work goes on."""

import json
import logging
import math
import re
import subprocess
import sys
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
from tests.batch.conftest import CONTEXTS, FORMATS, ROWS, answered, read_lines, write_lines
from tests.conftest import tiny_model

from loraqa.answer.reader import Reader as PlainReader
from loraqa.batch.open import open_source
from loraqa.batch.parts import Parts
from loraqa.batch.plan import Part, chunks, make_plan
from loraqa.documents import Document
from loraqa.errors import InputError
from loraqa.prompt.encode import PromptEncoder
from loraqa.reader_options import ReaderOptions

# Answers each file in a process of its own, which kills itself when two parts are saved and a batch
# of the third is in its journal. Importing PyTorch once is enough.
KILLED = """
import os, signal, sys
from pathlib import Path
from loraqa.answer.journal import Journal
from loraqa.batch.answer import answer_file
from loraqa.batch.open import open_source
from loraqa.batch.options import Options
from loraqa.batch.plan import make_plan
from loraqa.reader_options import ReaderOptions

model, *files = sys.argv[1:]
append = Journal._append

def append_and_stop(self, line):
    append(self, line)
    if self.path.name == "part-00000002.json.journal":
        os.kill(os.getpid(), signal.SIGKILL)

Journal._append = append_and_stop
options = Options(ReaderOptions(Path(model), max_answer_tokens=6), rows=2)
for data, out in zip(files[::2], files[1::2]):
    if os.fork() == 0:
        answer_file(make_plan(open_source(Path(data)), 2), Path(out), options)
        os._exit(1)
    assert os.WTERMSIG(os.wait()[1]) == signal.SIGKILL
"""


@pytest.fixture
def interrupted(gpt2: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path]:
    """A file, and the output of a work that failed after two parts."""
    data, out = write_lines(tmp_path / "in.jsonl", ROWS), tmp_path / "out.jsonl"
    save = Parts.save

    def save_two(self: Parts, part: Part, replies: Any) -> None:
        if part.number == 2:
            raise OSError("the disk is full")
        save(self, part, replies)

    with monkeypatch.context() as patched:
        patched.setattr(Parts, "save", save_two)
        with pytest.raises(OSError, match="full"):
            answered(data, out, gpt2, rows=2)
    return data, out


def expected(model: Path) -> list[tuple[str, int | None, int | None]]:
    """What the reader answers to each row alone."""
    reader = ReaderOptions(model, max_answer_tokens=6).load()
    answers = [reader.answer(row["context"], [row["question"]])[0] for row in ROWS]
    return [(each.text, each.start, each.end) for each in answers]


@pytest.mark.parametrize("ending", FORMATS)
def test_each_row_has_the_readers_answer(ending: str, model: Path, tmp_path: Path) -> None:
    write, read = FORMATS[ending]
    data, out = write(tmp_path / f"in.{ending}", ROWS), tmp_path / f"out.{ending}"
    done = answered(data, out, model)
    assert (done.rows, done.answered, done.skipped, done.left_out) == (12, 12, 0, 0)
    rows = read(out)
    assert [{key: row[key] for key in ROWS[0]} for row in rows] == ROWS
    given = [(row["answer"], int(row["start"]), int(row["end"])) for row in rows]
    assert given == expected(model)
    assert all(row["context"][s:e] == text for row, (text, s, e) in zip(rows, given, strict=True))
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith("out")] == [out.name]


@pytest.mark.parametrize("ending", FORMATS)
def test_each_row_has_the_probability_whose_bounds_are_shown_elsewhere(
    ending: str, model: Path, tmp_path: Path
) -> None:
    write, read = FORMATS[ending]
    data, out = write(tmp_path / f"in.{ending}", ROWS), tmp_path / f"out.{ending}"
    answered(data, out, model)
    reader = ReaderOptions(model, max_answer_tokens=6).load()
    for row, given in zip(ROWS, read(out), strict=True):
        (best,) = reader.answer(row["context"], [row["question"]])
        assert best.probability_at_least is not None
        assert best.probability_at_most is not None
        assert not given["confidence"]
        least, most = best.probability_at_least - 1e-6, best.probability_at_most + 1e-6
        assert least <= float(given["probability"]) <= most


def test_without_spans_the_probability_is_that_of_the_tokens(gpt2: Path, tmp_path: Path) -> None:
    data, out = write_lines(tmp_path / "in.jsonl", ROWS), tmp_path / "out.jsonl"
    answered(data, out, gpt2, strategy="greedy")
    reader = ReaderOptions(gpt2, max_answer_tokens=6).load()
    for row, given in zip(ROWS, read_lines(out), strict=True):
        (best,) = reader.answer(row["context"], [row["question"]], "greedy")
        assert given["probability"] == pytest.approx(math.exp(best.log_probability), rel=1e-4)


def test_a_killed_work_goes_on_to_the_same_bytes(
    gpt2: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = {}
    for ending, (write, _) in FORMATS.items():
        data = write(tmp_path / f"in.{ending}", ROWS)
        answered(data, tmp_path / f"whole.{ending}", gpt2, rows=2)
        files[data] = tmp_path / f"out.{ending}"
    words = [sys.executable, "-c", KILLED, gpt2, *chain(*files.items())]
    done = subprocess.run([str(word) for word in words], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr

    read, passages = PlainReader.read, []

    def counting(self: PlainReader, each: Any, *args: Any, **more: Any) -> Any:
        passages.extend(each)
        return read(self, each, *args, **more)

    monkeypatch.setattr(PlainReader, "read", counting)
    for data, out in files.items():
        assert not out.exists()
        folder = tmp_path / f"{out.name}.parts"
        assert sorted(path.name for path in folder.glob("part-*")) == [
            "part-00000000.json",
            "part-00000001.json",
            "part-00000002.json.journal",
        ]
        passages.clear()
        answered(data, out, gpt2, rows=2)
        # A part holds the four questions on a context; those of the first are not asked again.
        assert [passage.context for passage in passages] == CONTEXTS[2:]
        assert out.read_bytes() == (tmp_path / f"whole{out.suffix}").read_bytes()
        assert not folder.exists()


def test_a_context_is_read_once_for_all_its_rows(
    gpt2: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows that are not consecutive count, too; within a part."""
    mixed = [row for question in range(4) for row in ROWS[question::4]]
    asked: list[tuple[str, int]] = []
    read = PlainReader.read

    def counting(self: PlainReader, each: Any, *args: Any, **more: Any) -> Any:
        asked.extend((passage.context, len(passage.questions)) for passage in each)
        return read(self, each, *args, **more)

    monkeypatch.setattr(PlainReader, "read", counting)
    out = tmp_path / "out.jsonl"
    answered(write_lines(tmp_path / "in.jsonl", mixed), out, gpt2, rows=12)
    assert asked == [(context, 4) for context in CONTEXTS]
    assert [row["id"] for row in read_lines(out)] == [row["id"] for row in mixed]


def test_a_part_ends_where_the_context_changes(tmp_path: Path) -> None:
    source = open_source(write_lines(tmp_path / "in.jsonl", ROWS))
    assert [part.rows for part in make_plan(source, 3).parts] == [4, 4, 4]
    assert [part.rows for part in make_plan(source, 5).parts] == [8, 4]
    # But not later than after twice the rows.
    assert [part.rows for part in make_plan(source, 1).parts] == [2] * 6


def test_no_more_than_a_part_is_held(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A part ends where it has so many bytes, whatever the rows are."""
    monkeypatch.setattr("loraqa.batch.plan._LARGEST", 5000)
    rows = [{"context": "long " * 200, "question": "What?"}] * 100
    for ending, (write, _) in FORMATS.items():
        source = open_source(write(tmp_path / f"in.{ending}", rows))
        plan = make_plan(source, 1000)
        assert plan.rows == 100
        for _, chunk in chunks(source, plan.parts):
            sizes = [len(str(record.fields["context"])) for record in chunk]
            assert sum(sizes) <= 5000 + max(sizes)


def test_a_work_goes_on_with_smaller_batches_and_on_a_named_device(
    interrupted: tuple[Path, Path], gpt2: Path
) -> None:
    data, out = interrupted
    answered(data, out, gpt2, rows=2, tokens_per_batch=100, device="cpu")
    assert [(row["answer"], row["start"], row["end"]) for row in read_lines(out)] == expected(gpt2)


@pytest.mark.parametrize("change", ["strategy", "model", "questions", "dtype"])
def test_a_work_does_not_go_on_with_something_else(
    change: str, interrupted: tuple[Path, Path], gpt2: Path, tmp_path: Path, tiny_tokenizer: Any
) -> None:
    data, out = interrupted
    before = sorted((tmp_path / "out.jsonl.parts").iterdir())
    options: dict[str, Any] = {}
    if change == "strategy":
        options["strategy"] = "greedy"
        message = r'began with another strategy, "span" and not "greedy"'
    elif change == "dtype":
        options["dtype"] = "float32"
        message = 'began with another dtype, null and not "float32"'
    elif change == "questions":
        write_lines(data, [{**row, "question": f"{row['question']}?"} for row in ROWS])
        message = "part-00000000.json holds answers to other questions or contexts than rows 1 to 4"
    else:
        gpt2 = tmp_path / "other"
        tiny_model("llama").save_pretrained(gpt2)
        tiny_tokenizer.save_pretrained(gpt2)
        message = "began with another model"
    with pytest.raises(InputError, match=message):
        answered(data, out, gpt2, rows=2, **options)
    assert sorted((tmp_path / "out.jsonl.parts").iterdir()) == before


@pytest.mark.parametrize("ending", FORMATS)
def test_rows_about_one_text_have_the_answers_of_rows_with_a_copy_of_it(
    ending: str, gpt2: Path, tmp_path: Path
) -> None:
    write, read = FORMATS[ending]
    text = "\n\n".join(CONTEXTS)
    questions = [{key: row[key] for key in ("id", "question")} for row in ROWS]
    data = write(tmp_path / f"in.{ending}", questions)
    copies = write(tmp_path / f"copies.{ending}", [{**row, "context": text} for row in questions])
    out, expected = tmp_path / f"out.{ending}", tmp_path / f"expected.{ending}"
    answered(data, out, gpt2, document=Document(text))
    answered(copies, expected, gpt2)
    without = [{key: row[key] for key in row if key != "context"} for row in read(expected)]
    assert read(out) == without


def test_a_work_about_one_text_goes_on_with_this_text_alone(
    gpt2: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = write_lines(tmp_path / "in.jsonl", [{"question": row["question"]} for row in ROWS])
    out, whole = tmp_path / "out.jsonl", tmp_path / "whole.jsonl"
    save = Parts.save

    def save_one(self: Parts, part: Part, replies: Any) -> None:
        if part.number == 1:
            raise OSError("the disk is full")
        save(self, part, replies)

    with monkeypatch.context() as patched:
        patched.setattr(Parts, "save", save_one)
        with pytest.raises(OSError, match="full"):
            answered(data, out, gpt2, rows=2, document=Document(CONTEXTS[0]))
    with pytest.raises(InputError, match="holds answers to other questions or contexts than rows"):
        answered(data, out, gpt2, rows=2, document=Document(CONTEXTS[1]))
    answered(data, out, gpt2, rows=2, document=Document(CONTEXTS[0]))
    answered(data, whole, gpt2, rows=2, document=Document(CONTEXTS[0]))
    assert out.read_bytes() == whole.read_bytes()


def test_a_damaged_part_is_answered_again(
    interrupted: tuple[Path, Path], gpt2: Path, tmp_path: Path
) -> None:
    data, out = interrupted
    part = tmp_path / "out.jsonl.parts" / "part-00000001.json"
    part.write_text(part.read_text().replace('"replies"', '"replied"'))
    answered(data, out, gpt2, rows=2)
    answered(data, tmp_path / "whole.jsonl", gpt2, rows=2)
    assert out.read_bytes() == (tmp_path / "whole.jsonl").read_bytes()


def test_a_work_that_dies_when_all_is_written_ends_the_same(
    gpt2: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, out = write_lines(tmp_path / "in.jsonl", ROWS[:4]), tmp_path / "out.jsonl"
    with monkeypatch.context() as patched:
        patched.setattr(Parts, "remove", lambda _: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            answered(data, out, gpt2)
    before = out.read_bytes()
    monkeypatch.setattr(PlainReader, "read", None)
    assert answered(data, out, gpt2).answered == 4
    assert out.read_bytes() == before
    assert not (tmp_path / "out.jsonl.parts").exists()


def test_a_finished_file_is_not_overwritten(gpt2: Path, tmp_path: Path) -> None:
    data, out = write_lines(tmp_path / "in.jsonl", ROWS[:1]), tmp_path / "out.jsonl"
    answered(data, out, gpt2)
    with pytest.raises(InputError, match="exists already; name another place, or remove it"):
        answered(data, out, gpt2)


@pytest.mark.parametrize("when", ["before", "meanwhile"])
def test_a_file_that_others_made_is_not_overwritten(
    when: str, interrupted: tuple[Path, Path], gpt2: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, out = interrupted
    save = Parts.save

    def make_and_save(self: Parts, part: Part, replies: Any) -> None:
        out.write_text("of others")
        save(self, part, replies)

    if when == "before":
        out.write_text("of others")
    monkeypatch.setattr(Parts, "save", make_and_save if when == "meanwhile" else None)
    with pytest.raises(InputError, match=r"made by something else; .* the answers are kept in"):
        answered(data, out, gpt2, rows=2)
    assert out.read_text() == "of others"
    out.unlink()
    monkeypatch.setattr(Parts, "save", save)
    assert answered(data, out, gpt2, rows=2).answered == 12


def test_two_processes_do_not_write_the_same_file(gpt2: Path, tmp_path: Path) -> None:
    data, out = write_lines(tmp_path / "in.jsonl", ROWS[:1]), tmp_path / "out.jsonl"
    with (
        Parts.beside(out, {}),
        pytest.raises(InputError, match="Another process is writing to"),
    ):
        answered(data, out, gpt2)


def test_long_texts_are_read_in_windows(gpt2: Path, tmp_path: Path) -> None:
    long = " ".join(f"Nothing happened in year {n}." for n in range(60)) + CONTEXTS[0]
    rows = [{"context": long, "question": "Who built the mill?"}]
    data = write_lines(tmp_path / "in.jsonl", rows)
    given = []
    for windows in (1, None):
        out = tmp_path / f"{windows}.jsonl"
        answered(data, out, gpt2, windows=windows)
        (row,) = read_lines(out)
        options = ReaderOptions(gpt2, max_answer_tokens=6, windows=windows)
        (best,) = options.load().answer(long, ["Who built the mill?"])
        assert (row["answer"], row["start"], row["end"]) == (best.text, best.start, best.end)
        assert long[row["start"] : row["end"]] == row["answer"]
        given.append(row["start"])
    assert given[0] > len(long) - 1000


def test_a_question_without_room_is_skipped_if_it_is_to_be(gpt2: Path, tmp_path: Path) -> None:
    rows = [*ROWS[:2], {"context": CONTEXTS[0], "question": "why " * 300}, *ROWS[2:4]]
    data = write_lines(tmp_path / "in.jsonl", rows)
    with pytest.raises(InputError, match=r"\(line 3\) takes .* shorten the question"):
        answered(data, tmp_path / "out.jsonl", gpt2)
    done = answered(data, tmp_path / "out.jsonl", gpt2, on_bad="skip")
    assert (done.rows, done.answered, done.skipped) == (5, 4, 1)
    given = [row["answer"] for row in read_lines(tmp_path / "out.jsonl")]
    answered(write_lines(tmp_path / "good.jsonl", ROWS[:4]), tmp_path / "o.jsonl", gpt2)
    good = [row["answer"] for row in read_lines(tmp_path / "o.jsonl")]
    assert given == [*good[:2], None, *good[2:]]


def test_messages_name_a_row_as_people_find_it_in_the_file(
    gpt2: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Blank lines, lines within cells and rows that are none count; ids are named, too."""
    good, long = ROWS[0], {**ROWS[1], "question": "why " * 300}
    named = {}
    cells = ["A king.\nA queen.", "Who?"], [long["context"], long["question"]]
    table = 'id,context,question\n1,"{}",{}\n\nbad\nq01,"{}",{}\n'
    (tmp_path / "in.csv").write_text(table.format(*cells[0], *cells[1]))
    named["in.csv"] = "line 6, id 'q01'"
    lines = [json.dumps(good), "", "bad", json.dumps(long), json.dumps(long)]
    (tmp_path / "in.jsonl").write_text("\n".join(lines))
    named["in.jsonl"] = "line 4, id 'q01'"
    FORMATS["parquet"][0](tmp_path / "in.parquet", [good] * 6 + [long])
    named["in.parquet"] = "row 6, id 'q01'"
    for name, place in named.items():
        caplog.clear()
        answered(tmp_path / name, tmp_path / f"out-{name}", gpt2, on_bad="skip", rows=1)
        told = [message for message in caplog.messages if message.startswith("Skipped")]
        assert f"…' ({place}) takes" in told[0]


def test_samples_of_a_row_do_not_depend_on_parts(gpt2: Path, tmp_path: Path) -> None:
    """Parts are what is sent to other machines; they know no row before them."""
    data = write_lines(tmp_path / "in.jsonl", ROWS)
    outs = [tmp_path / f"out{rows}.jsonl" for rows in (1, 100)]
    for out, rows in zip(outs, (1, 100), strict=True):
        answered(data, out, gpt2, rows=rows, strategy="temperature:1")
    answers = [[row["answer"] for row in read_lines(out)] for out in outs]
    assert answers[0] == answers[1]
    assert len({*answers[0]}) > 1


def test_questions_without_room_are_all_found_at_once(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A context may be a book, so it is not encoded for each of its questions."""
    encode, encodings = PromptEncoder.encode_prompts, []

    def counting(self: PromptEncoder, *args: Any) -> Any:
        encodings.append(args)
        return encode(self, *args)

    monkeypatch.setattr(PromptEncoder, "encode_prompts", counting)
    long = [
        {"context": context, "question": "why " * times}
        for context in CONTEXTS
        for times in (300, 400)
    ]
    data = write_lines(tmp_path / "in.jsonl", [*long, *ROWS])
    done = answered(data, tmp_path / "out.jsonl", model, on_bad="skip", rows=100)
    assert (done.answered, done.skipped) == (12, 6)
    assert len(encodings) == 2


def test_answers_without_room_are_no_problem_of_the_data(
    model: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    data = write_lines(tmp_path / "in.jsonl", [{**ROWS[0], "context": CONTEXTS[0] * 20}, ROWS[4]])
    with pytest.raises(InputError, match=r"^Answers of up to 250 of \d+ .*; lower max_answer_tok"):
        answered(data, tmp_path / "out.jsonl", model, on_bad="skip", max_answer_tokens=250)
    assert "Skipped" not in caplog.text


def test_all_questions_without_room_are_listed(model: Path, tmp_path: Path) -> None:
    long = [{"context": CONTEXTS[0], "question": "why " * times} for times in (300, 400)]
    data = write_lines(tmp_path / "in.jsonl", [long[0], ROWS[0], long[1]])
    with pytest.raises(InputError) as refused:
        answered(data, tmp_path / "out.jsonl", model, rows=100)
    *told, way_on = str(refused.value).splitlines()
    assert sorted(re.findall(r"\(line \d", " ".join(told))) == ["(line 1", "(line 3"]
    assert way_on == "Correct them, or skip them with --on-bad skip."


@pytest.mark.parametrize("ending", FORMATS)
def test_a_skipped_row_says_why(
    ending: str, gpt2: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write, read = FORMATS[ending]
    bad = [{"question": " ", "context": ""}, {"question": "why " * 300}, {"question": ""}]
    rows = [ROWS[0], *({**ROWS[1], **each} for each in bad), ROWS[2]]
    data, out = write(tmp_path / f"in.{ending}", rows), tmp_path / f"out.{ending}"
    answered(data, out, gpt2, on_bad="skip", rows=1)
    good, blank, long, empty, last = read(out)
    assert blank["problem"] == "The context is empty; the question is empty."
    assert re.fullmatch(
        r"The question takes \d+ of \d+ tokens with its answer and leaves no room for windows with "
        r"a stride of \d+; shorten the question\.",
        long["problem"],
    )
    assert empty["problem"] == "The question is empty."
    for row in (blank, long, empty):
        added = ("answer", "start", "end", "confidence", "probability")
        assert not any(row[name] for name in added)
    for row in (good, last):
        assert not row["problem"]
        assert row["answer"]

    # A work that goes on takes the problems from its parts.
    again, save = tmp_path / f"again.{ending}", Parts.save

    def save_three(self: Parts, part: Part, replies: Any) -> None:
        if part.number == 3:
            raise OSError("the disk is full")
        save(self, part, replies)

    with monkeypatch.context() as patched:
        patched.setattr(Parts, "save", save_three)
        with pytest.raises(OSError, match="full"):
            answered(data, again, gpt2, on_bad="skip", rows=1)
    answered(data, again, gpt2, on_bad="skip", rows=1)
    assert again.read_bytes() == out.read_bytes()


def test_an_interruption_says_what_is_kept(
    gpt2: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    data, out = FORMATS["csv"][0](tmp_path / "in.csv", ROWS), tmp_path / "out.csv"
    caplog.set_level(logging.INFO, logger="loraqa")
    read, calls = PlainReader.read, []

    def interrupted(*args: Any, **more: Any) -> Any:
        calls.append(1)
        if len(calls) in (1, 3):
            raise KeyboardInterrupt
        return read(*args, **more)

    monkeypatch.setattr(PlainReader, "read", interrupted)
    again = "do the same again to"
    for said in (
        f"No answers were kept yet; {again} start anew.",
        f"The answers so far are kept in {out}.parts; {again} go on from there.",
    ):
        caplog.clear()
        with pytest.raises(KeyboardInterrupt):
            answered(data, out, gpt2, rows=2)
        assert caplog.messages[-1] == said
