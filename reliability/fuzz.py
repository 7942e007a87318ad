"""The fuzz study: every reader reads generated documents, and then noise.

A reader may refuse a document with an `InputError` of one bounded message. What it reads must agree
with itself: answers stand where their offsets say, gold answers score 100, and what is written and
read again is the same.
"""

import json
import logging
import random
import signal
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import cache, partial
from multiprocessing import Pipe, get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from loraqa.adapter.info import INFO, read_adapter_info, write_adapter_info
from loraqa.documents import read_document
from loraqa.errors import InputError
from loraqa.lora.peft_config import PeftConfig
from loraqa.prompt.template import Template
from loraqa.squad import (
    Answer,
    QADataset,
    Question,
    normalize_answer,
    read_no_answer_probabilities,
    read_passages,
    read_predictions,
    score,
    write_official,
)
from loraqa.squad.text import read_text
from loraqa.train.settings import load_settings
from reliability import documents
from reliability.works import write_inputs

# Seconds that a small document may take, and characters of a message.
_LIMIT = 10.0
_LONGEST = 4000


class HangError(Exception):
    """A reader took too long."""


class WrongError(Exception):
    """What was read does not agree with itself."""


@dataclass(frozen=True)
class Kind:
    """A kind of documents.

    Attributes:
        name: its name in the table.
        file: the name of the file.
        make: makes a right document.
        write: turns it into the content of the file.
        read: reads the file and checks what was read; raises `InputError` or `WrongError`.
        noisy: whether bytes of each file are changed.
    """

    name: str
    file: str
    make: Callable[[random.Random], Any]
    write: Callable[[Any, random.Random], bytes]
    read: Callable[[Path], None]
    noisy: bool = False

    def document(self, chance: random.Random) -> bytes:
        """Return a right document, one with wrong parts, or noise."""
        value = self.make(chance)
        if self.noisy:
            return documents.noise(self.write(value, chance), chance)
        for _ in range(chance.choice((0, 0, 1, 1, 2, 5))):
            value = documents.changed(value, chance)
        content = self.write(value, chance)
        return documents.noise(content, chance) if chance.random() < 0.1 else content


@dataclass(frozen=True)
class Document:
    """A document of the study, which its number and the seed reproduce."""

    kind: Kind
    number: int

    @property
    def group(self) -> str:
        """The line of the table."""
        return self.kind.name

    def __str__(self) -> str:
        return f"{self.kind.name}, document {self.number}"


Report = Callable[[Document, str | None, bool], None]


def kinds(folder: Path) -> list[Kind]:
    """Return all kinds; `folder` is for a model to ask."""
    read = _read_questions
    ask = partial(_ask, folder)
    return [
        Kind("official JSON", "data.json", documents.official, documents.as_json, read),
        Kind("JSON records", "data.json", documents.records, documents.as_json, read),
        Kind("JSON Lines", "data.jsonl", documents.records, documents.as_lines, read),
        Kind("CSV", "data.csv", documents.records, documents.as_csv, read),
        Kind("Parquet", "data.parquet", documents.records, documents.as_parquet, read),
        Kind("Arrow", "data.arrow", documents.records, documents.as_arrow, read),
        Kind("gzip, JSON", "data.json.gz", documents.official, _zipped(documents.as_json), read),
        Kind("gzip, CSV", "data.csv.gz", documents.records, _zipped(documents.as_csv), read),
        Kind("no suffix", "data", documents.records, documents.as_lines, read),
        Kind("predictions", "p.json", documents.predictions, documents.as_json, _read_predictions),
        Kind("probabilities", "p.json", documents.probabilities, documents.as_json, _read_numbers),
        Kind("settings", "settings.yaml", documents.settings, documents.as_yaml, _read_settings),
        Kind(
            "PEFT's config",
            "adapter_config.json",
            documents.peft_config,
            documents.as_json,
            _read_peft,
        ),
        Kind("loraqa.json", INFO, documents.adapter_info, documents.as_json, _read_info),
        Kind("template", "template.txt", documents.text, _as_text, _read_template),
        Kind("ask", "context.txt", documents.text, _as_text, ask),
        Kind("HTML", "page.html", documents.text, documents.as_html, _read_pages),
        Kind("DOCX", "text.docx", documents.text, documents.as_docx, _read_pages),
        Kind("PDF", "book.pdf", documents.text, documents.as_pdf, _read_pages),
    ]


def study(
    folder: Path,
    count: int,
    seconds: float,
    seed: int,
    report: Report,
    first: int = 0,
) -> None:
    """Read `count` documents, then noise for so many seconds, and report each.

    Args:
        report: gets a document, what went wrong if anything did, and whether it was refused.
        first: the number of the first document.
    """
    logging.getLogger("loraqa").setLevel(logging.CRITICAL)
    write_inputs(folder)
    # Loaded once for all processes.
    _reader(folder), _model(folder)
    all_kinds = kinds(folder)
    noisy = [replace(kind, name=f"noise as {kind.name}", noisy=True) for kind in all_kinds]
    last = first + count
    _read_all(all_kinds, first, lambda number: number < last, seed, folder, report)
    end = time.monotonic() + seconds
    _read_all(noisy, last, lambda _: time.monotonic() < end, seed, folder, report)


def _read_all(
    of: Sequence[Kind],
    number: int,
    more: Callable[[int], bool],
    seed: int,
    folder: Path,
    report: Report,
) -> None:
    """Read documents from a number on, in another process, because a reader may end its process."""
    while more(number):
        ours, theirs = Pipe(duplex=False)
        reading = (of, number, more, seed, folder, theirs)
        process = get_context("fork").Process(target=_read_each, args=reading)
        process.start()
        theirs.close()
        with suppress(EOFError):
            while verdict := ours.recv():
                report(Document(of[number % len(of)], number), *verdict)
                number += 1
        process.join()
        if process.exitcode != 0:
            document = Document(of[number % len(of)], number)
            report(document, f"the process ended with status {process.exitcode}", False)
            number += 1


def _read_each(
    of: Sequence[Kind],
    number: int,
    more: Callable[[int], bool],
    seed: int,
    folder: Path,
    verdicts: Connection,
) -> None:
    while more(number):
        kind = of[number % len(of)]
        content = kind.document(random.Random(f"{seed} {number}"))
        verdicts.send(_try(kind, folder, content))
        number += 1
    verdicts.send(None)


def _try(kind: Kind, folder: Path, content: bytes) -> tuple[str | None, bool]:
    """Return what went wrong, if anything did, and whether the document was refused."""
    path = folder / kind.file
    path.write_bytes(content)
    try:
        with _limited(_LIMIT):
            kind.read(path)
    except InputError as error:
        return _fault_of_message(str(error)), True
    except Exception:
        return " | ".join(traceback.format_exc().strip().splitlines()[-5:])[-600:], False
    return None, False


@contextmanager
def _limited(seconds: float) -> Iterator[None]:
    def stop(*_: object) -> None:
        raise HangError(f"it took more than {seconds:.0f} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def _fault_of_message(message: str) -> str | None:
    if len(message) > _LONGEST:
        return f"the message has {len(message)} characters: {message[:200]}…"
    if not message.endswith((".", "?")) or "\x00" in message or "Traceback" in message:
        return f"the message is no sentence: {message[:300]!r}"
    return None


def _check(condition: bool, what: str) -> None:
    if not condition:
        raise WrongError(what)


def _read_questions(path: Path) -> None:
    """Read data strictly and leniently; check what is read, and that it can be written and read."""
    refused = None
    try:
        _check_data(path, read_passages(path))
    except InputError as error:
        refused = error
    try:
        _check_data(path, read_passages(path, on_bad="skip"))
    except InputError:
        if refused is None:
            raise WrongError(
                "data with no problem are refused where problems are skipped"
            ) from None
    if refused is not None:
        raise refused


def _check_data(path: Path, data: QADataset) -> None:
    ids = [question.id for question in data.questions]
    _check(len(set(ids)) == len(ids), "an id occurs twice")
    _check(sorted(data.order) == sorted(ids), "the order names other questions")
    for passage in data.passages:
        for question in passage.questions:
            for answer in question.answers:
                _check(_stands(answer, passage.context), f"{answer} is not in its context")
    golds = {question.id: _gold(question) for question in data.questions}
    _check(score(golds, data).exact_match == 100, "gold answers do not score 100")
    copy = path.with_name("copy.json")
    write_official(copy, data.passages, data.version)
    again = read_passages(copy)
    _check(again.passages == data.passages, "data differ after they were written and read again")


def _gold(question: Question) -> str:
    """Return an answer that counts; the official script ignores golds without a word."""
    return next(filter(normalize_answer, question.golds), next(iter(question.golds), ""))


def _stands(answer: Answer, context: str) -> bool:
    return answer.start is None or context[answer.start : answer.end] == answer.text


def _read_predictions(path: Path) -> None:
    read = read_predictions(path)
    copy = path.with_name("copy.json")
    copy.write_text(json.dumps(read))
    _check(read_predictions(copy) == read, "predictions differ after they were written")


def _read_numbers(path: Path) -> None:
    read = read_no_answer_probabilities(path)
    copy = path.with_name("copy.json")
    copy.write_text(json.dumps(read))
    _check(read_no_answer_probabilities(copy) == read, "probabilities differ after writing")


def _read_settings(path: Path) -> None:
    read = load_settings([path])
    copy = path.with_name("copy.yaml")
    copy.write_text(read.to_yaml(), encoding="utf-8")
    _check(load_settings([copy]) == read, "settings differ after writing")


def _read_peft(path: Path) -> None:
    """Read the configuration, and find the layers that it means."""
    config = PeftConfig.read(path.parent)
    model = _model(path.parent)
    for name in config.targets(model):
        _check(config.rank_of(name) >= 1, f"the rank of {name} is below 1")
        _check(config.alpha_of(name) == config.alpha_of(name), f"α of {name} is no number")


def _read_info(path: Path) -> None:
    read = read_adapter_info(path.parent)
    write_adapter_info(path.parent, read)
    _check(read_adapter_info(path.parent) == read, "loraqa.json differs after writing")


def _read_template(path: Path) -> None:
    """Write prompts with a template, and with a text in each of its fields."""
    written = read_text(path)
    template = Template(f"{{context}}{written}{{question}}{written}{{answer}}")
    for segment in (template.context("c"), template.question("q"), template.answer("a")):
        _check(not segment.endswith(" "), f"{segment!r} ends in a blank")


def _ask(folder: Path, path: Path) -> None:
    """Ask a model about a text; answers stand where their offsets say."""
    context = read_text(path)
    reader = _reader(folder)
    for strategy in ("greedy", "span"):
        for answer in reader.answer(context, [context[:40], "Who?"], strategy):
            if answer.start is not None:
                found = context[answer.start : answer.end]
                _check(strategy != "span" or found == answer.text, f"{answer} is not at its place")


def _read_pages(path: Path) -> None:
    """Read a document; each page begins where it says."""
    read = read_document(path)
    _check(read.text.encode().decode() == read.text, "the text cannot be written")
    for number, start in enumerate(read.pages, start=1):
        _check(start <= len(read.text), f"page {number} begins behind the text")
        _check(read.page_at(start) == number, f"page {number} is elsewhere")


def _as_text(value: Any, _: random.Random) -> bytes:
    text = value if isinstance(value, str) else json.dumps(value)
    return text.encode("utf-8", "surrogatepass")


def _zipped(write: Callable[[Any, random.Random], bytes]) -> Callable[..., bytes]:
    return lambda value, chance: documents.zipped(write(value, chance))


@cache
def _reader(folder: Path) -> Any:
    from loraqa.reader import Reader

    return replace(Reader.load(folder / "gpt2", without="all"), max_answer_tokens=6)


@cache
def _model(folder: Path) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder / "gpt2")
