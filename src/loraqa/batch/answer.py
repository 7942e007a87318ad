"""The recipe of answering a file: answer the parts that are missing, and write the whole.

options = Options(ReaderOptions(Path("runs/squad")))
plan = make_plan(open_source(Path("questions.csv")))
answer_file(plan, Path("answers.csv"), options)
"""

import logging
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from loraqa.answer.answered import Answered
from loraqa.answer.journal import Journal
from loraqa.answer.progress import Progress
from loraqa.answer.reader import Reader, with_close_bounds, without_capitals
from loraqa.answer.strategies import parse_strategy
from loraqa.batch.options import Options
from loraqa.batch.parts import Parts
from loraqa.batch.plan import Asked, Part, Plan, asked_or_problem, chunks, named_place
from loraqa.batch.source import Record, Reply, Source, skipped
from loraqa.errors import InputError, LoraqaError, counted, quote
from loraqa.files import replacing
from loraqa.prompt.encode import NoRoomError
from loraqa.squad import Passage, Question
from loraqa.squad.checks import LISTED

logger = logging.getLogger("loraqa")

AnswerParts = Callable[[Source, Sequence[Part], Options, Parts, Progress], None]
"""Answers the questions of some parts, and saves each part as soon as it is answered."""


@dataclass(frozen=True)
class Done:
    """A file that was answered.

    Attributes:
        rows: how many rows it has.
        answered: how many of them have an answer, "no answer" included.
        no_answer: how many have "no answer".
        skipped: how many have none, because of a problem.
        left_out: how many rows of the input it lacks, because they could not be read.
    """

    rows: int
    answered: int
    no_answer: int
    skipped: int
    left_out: int

    def to_json(self) -> dict[str, Any]:
        """Return everything as plain JSON values."""
        return asdict(self)


def answer_file(
    plan: Plan,
    out: Path,
    options: Options,
    *,
    progress: Progress | None = None,
    answer_parts: AnswerParts | None = None,
) -> Done:
    """Write the table with an answer in each row, in the same order and format.

    Parts that an interrupted job has answered are not answered again.

    Args:
        plan: the table.
        out: the file to write.
        options: the model, and how it answers.
        progress: called with the number of questions answered so far.
        answer_parts: answers parts; by default in this process, one after another.

    Raises:
        InputError: `out` was written before or meanwhile, another process writes it, it was begun
            with other questions or options, answers leave no room for a context, or a question
            leaves none and is not to be skipped.
        LoraqaError: memory is out, or logits are not finite.
    """
    Parts.check_unwritten(out)
    with Parts.beside(out, {**options.facts(), "columns": list(Reply._fields)}) as parts:
        missing = parts.missing(plan.parts)
        if len(missing) < len(plan.parts):
            answered = plan.rows - sum(part.rows for part in missing)
            logger.info(f"Going on in {parts.folder}: {counted(answered, 'row')} are answered.")
        if missing:
            parts.check_not_made_by_others(out)
            answer = answer_parts or answer_here
            answer(plan.source, missing, options, parts, progress or _silently)
            parts.check_not_made_by_others(out)
        return _write(plan, parts, out)


def answer_here(
    source: Source, missing: Sequence[Part], options: Options, parts: Parts, progress: Progress
) -> None:
    """Answer parts in this process, one after another."""
    reader = options.reader.load()
    if reader.calibration is None:
        logger.info(
            f"{options.reader.run} was not calibrated, so the column confidence stays empty; "
            "probability orders the answers."
        )
    identity = reader.identify()
    done, total = 0, sum(part.rows for part in missing)
    progress(0, total)
    for part, chunk in chunks(source, missing):
        within = _Within(progress, done, part.rows, total)
        with _JournalOfPart.beside(parts.path(part), identity) as journal:
            parts.save(part, answer(reader, chunk, options, within, journal))
        done += part.rows
        progress(done, total)


def answer(
    reader: Reader,
    chunk: Sequence[Record],
    options: Options,
    progress: Progress | None = None,
    journal: Journal | None = None,
) -> list[Reply]:
    """Answer the questions of some rows; a context that several rows share is read once.

    Args:
        reader: the model.
        chunk: the rows.
        options: how it answers.
        progress, journal: as for `Reader.read`.

    Raises:
        InputError: answers leave no room for a context, or a question leaves none and is not to
            be skipped.
    """
    read = partial(
        reader.read,
        strategy=with_close_bounds(parse_strategy(options.strategy)),
        seed=options.seed,
        progress=progress,
        journal=journal,
    )
    asked = {_id(record): asked_or_problem(record) for record in chunk}
    replies = {row: skipped(each) for row, each in asked.items() if isinstance(each, str)}
    passages = _passages(asked)
    found = None
    while found is None:
        try:
            found = read(passages)
        except NoRoomError as error:
            told = _told(error, chunk)
            if options.on_bad == "stop":
                raise _refusal(told) from None
            for message in told:
                logger.warning(f"Skipped: {message}")
            replies |= _replies_without_room(error)
            passages = _without(passages, replies)
    replies |= {best.question_id: _reply(best) for best, *_ in found}
    return [replies[row] for row in asked]


def _passages(asked: Mapping[str, Asked | str]) -> list[Passage]:
    """Group questions by context."""
    questions: dict[str, list[Question]] = {}
    for row, each in asked.items():
        if isinstance(each, Asked):
            question = Question(row, without_capitals(each.question))
            questions.setdefault(each.context, []).append(question)
    return [Passage(context, tuple(each)) for context, each in questions.items()]


def _id(record: Record) -> str:
    """Return the id of a row's question: its place, because two rows may give the same id."""
    return str(record.place)


def _reply(best: Answered) -> Reply:
    return Reply(best.text, best.start, best.end, best.confidence, best.probability, None)


def _told(error: NoRoomError, chunk: Sequence[Record]) -> list[str]:
    """Return a message about each question that leaves no room."""
    places = {_id(record): named_place(record) for record in chunk}
    return [
        f"The question {quote(question.text)} ({places[question.id]}) {reason}."
        for question, reason in error.reasons.items()
    ]


def _refusal(told: Sequence[str]) -> InputError:
    """Return the error that lists the first of some messages, and says how to go on."""
    more = [f"And {len(told) - LISTED} more."] if len(told) > LISTED else []
    them = "it" if len(told) == 1 else "them"
    way_on = f"Correct {them}, or skip {them} with --on-bad skip."
    return InputError("\n".join([*told[:LISTED], *more, way_on]))


def _replies_without_room(error: NoRoomError) -> dict[str, Reply]:
    """Return the replies to the questions that leave no room, by their ids."""
    # As in the other problems, the sentence in a row does not name the row.
    return {
        question.id: skipped(f"The question {reason}.")
        for question, reason in error.reasons.items()
    }


def _without(passages: Sequence[Passage], rows: Collection[str]) -> list[Passage]:
    """Return the passages without the questions of some rows."""
    return [
        Passage(passage.context, good)
        for passage in passages
        if (good := tuple(q for q in passage.questions if q.id not in rows))
    ]


def _write(plan: Plan, parts: Parts, out: Path) -> Done:
    """Write the table with the answers of all parts, and remove these."""
    answered = no_answer = 0
    with replacing(out) as temporary, plan.source.writing(temporary) as writer:
        for part, chunk in chunks(plan.source, plan.parts):
            replies = parts.load(part)
            if replies is None:
                raise LoraqaError(f"{parts.path(part)} was lost; give the same command again.")
            writer.write([record.raw for record in chunk], replies)
            answered += sum(reply.answer is not None for reply in replies)
            no_answer += sum(reply.answer == "" for reply in replies)
    parts.remove()
    return Done(plan.rows, answered, no_answer, plan.rows - answered, plan.left_out)


class _JournalOfPart(Journal):
    """A journal beside other parts; `Parts` tells what is kept of them all."""

    def tell_what_is_kept(self) -> None:
        """Log nothing."""


class _Within:
    """Reports progress within a part in rows of the whole file.

    A part may have fewer questions than rows, because some rows are skipped.
    """

    def __init__(self, progress: Progress, before: int, rows: int, total: int) -> None:
        self._progress = progress
        self._before, self._rows, self._total = before, rows, total

    def __call__(self, done: float, total: int, part: str = "") -> None:
        rows = self._before + (self._rows * done / total if total else 0)
        # 0 would be the beginning.
        if rows:
            self._progress(rows, self._total, part)


def _silently(done: float, total: int, part: str = "") -> None:
    pass
