"""The demo: make data, train, score, compare strategies, show answers, write a report.

OUT/
    data/train.json, dev.json, test.json   the data, in SQuAD's format
    run/                                   the run with its report, as `loraqa train`, `evaluate`
                                           and `compare` write it
"""

import logging
import shlex
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console

from loraqa.answer.answered import Answered
from loraqa.answer.compare import Comparison, compare
from loraqa.answer.evaluate import Evaluated, evaluate, sample_questions
from loraqa.answer.outcome import outcome_of
from loraqa.answer.strategies import DEFAULT_STRATEGY, parse_strategy
from loraqa.demo import check_room
from loraqa.demo.parts import DemoBase, DemoData, DemoSize
from loraqa.documents import Document
from loraqa.errors import counted
from loraqa.files import contents, one_writer, replacing_folder, temporary_folder
from loraqa.finetuning import FinetuneResult, finetune
from loraqa.reader import Reader
from loraqa.report.answers import answer_lines
from loraqa.report.comparison import save_comparison
from loraqa.report.progress import answering_progress
from loraqa.report.run import BASE_FOLDER, PAGE, rewrite_report
from loraqa.report.tables import strategies_table
from loraqa.squad import Passage, QADataset, Question, write_official
from loraqa.train.run import RunDirectory
from loraqa.train.settings import RunSettings, parse_settings

logger = logging.getLogger("loraqa")

STRATEGIES = ("greedy", "temperature:1", "top-k:40", "top-p:0.9", "min-p:0.05", "beam:4", "span")

_SHOWN = 5


@dataclass(frozen=True)
class DemoResult:
    """Results of the demo.

    Attributes:
        before, after: answers to the test questions without and with the adapter.
        trained: result of the run.
        compared: decoding strategies on some of the test questions.
        report: file of the report.
    """

    before: Evaluated
    after: Evaluated
    trained: FinetuneResult
    compared: list[Comparison]
    report: Path

    def to_json(self) -> dict[str, Any]:
        """Scores, seconds and the comparison as plain JSON values."""
        return {
            "before": self.before.to_json(),
            "after": self.after.to_json(),
            "train_seconds": self.trained.training_seconds,
            "strategies": [row.to_json() for row in self.compared],
            "report": str(self.report),
        }


def run_demo(
    out: Path,
    console: Console,
    size: DemoSize | None = None,
    without: Sequence[str] = (),
    *,
    model: str | None = None,
    train: str | None = None,
    dev: str | None = None,
) -> DemoResult:
    """Run the demo in the folder `out`, which may hold an earlier demo: it is replaced.

    Args:
        out: folder for data, run, comparison and report.
        console: shows what happens.
        size: how much to do; by default what suits the model.
        without: names of accelerations to leave out, or "all".
        model: a pretrained base model; by default the embedded one.
        train, dev: the user's data for it; by default the embedded world.

    Raises:
        InputError: `out` holds something else, another process writes there, a name in `without`
            is unknown, or model or data cannot be used.
    """
    check_room(out)
    base = DemoBase() if model is None else DemoBase.pretrained(model)
    if size:
        base = replace(base, size=size)
    data = DemoData.own(train, dev, base.size) if train and dev else DemoData.world(base.size)
    command = _command({"--out": out, "--model": model, "--train": train, "--dev": dev})
    with one_writer(out):
        return _run_demo(out, console, base, data, without, command)


def _command(options: Mapping[str, Path | str | None]) -> str:
    """Return the command of a demo with these options, for the model card."""
    given = (f"{part}" for pair in options.items() if pair[1] is not None for part in pair)
    return shlex.join(["loraqa", "demo", *given])


def _run_demo(
    out: Path,
    console: Console,
    base: DemoBase,
    data: DemoData,
    without: Sequence[str],
    command: str,
) -> DemoResult:
    _make_room(out)
    _write_data(out / "data", data)
    test, settings = data.parts["test"], _settings(out / "data", base, without)
    # Lines end between words, also after a path that is too long: broken, it could not be copied.
    tell = partial(console.print, overflow="ignore", crop=False)
    tell(f"{data.described}\n")

    tell(f"Before: {base.described}.")
    with answering_progress() as progress:
        before = evaluate(Reader.load(base.source, without=without), test, progress=progress)
    console.print(_scores(before))

    console.print(
        "\nTraining a LoRA adapter, then scoring it and comparing decoding strategies; each shows "
        "the time left."
    )
    run = RunDirectory(out / "run")
    with run.telling_what_is_kept():
        trained = finetune(settings, run.path, command=command)
    reader = Reader.load(out / "run", without=without)
    with answering_progress() as progress:
        after = evaluate(reader, test, progress=progress)
    sample = sample_questions(test, base.size.compared_questions, settings.seed)
    strategies = [parse_strategy(name) for name in STRATEGIES]
    with answering_progress(of="answer") as progress:
        compared = compare(reader, sample, strategies, progress=progress)
    _keep(before, test, Path(base.source), run.path / BASE_FOLDER, command)
    _keep(after, test, run.path, run.path, command)
    save_comparison(compared, run.path / "comparison")
    rewrite_report(run.path)
    console.print(f"\nAfter {trained.training_seconds:.0f} seconds of training: {_scores(after)}\n")
    console.print(strategies_table(compared).to_rich())

    for passage, question, answer in _shown(after, test):
        console.print(f"\n{passage.context}", style="dim")
        for line in answer_lines(Document(passage.context), [question.text], [[answer]]):
            console.print(line)

    report = run.path / PAGE
    steps = _next_steps(out, base.source)
    console.print(f"\nThe report is {report}. To go on:\n{steps}", soft_wrap=True)
    return DemoResult(before, after, trained, compared, report)


def _keep(evaluated: Evaluated, test: QADataset, model: Path, folder: Path, command: str) -> None:
    """Write the outcome of an evaluation for the report."""
    outcome = outcome_of(evaluated, test, model=model, strategy=DEFAULT_STRATEGY, command=command)
    outcome.save(folder)


def _make_room(out: Path) -> None:
    """Remove an earlier demo."""
    check_room(out)
    # Its data, by which it is known, go last, so that what a kill leaves is still a demo.
    parts = sorted(contents(out), key=lambda path: path.name == "data")
    with temporary_folder(out) as old:
        for path in parts:
            path.rename(old / path.name)


def _write_data(folder: Path, data: DemoData) -> None:
    with replacing_folder(folder) as written:
        for name, part in data.parts.items():
            write_official(written / f"{name}.json", part.passages, part.version)


def _settings(data: Path, base: DemoBase, without: Sequence[str]) -> RunSettings:
    groups: dict[str, Mapping[str, Any]] = {
        "data": {"train": str(data / "train.json"), "dev": str(data / "dev.json")},
        "speed": {"without": without},
    }
    model = {"source": base.source} | dict(base.settings.get("model", {}))
    optimisation = {"epochs": base.size.epochs} | dict(base.settings["optimisation"])
    return parse_settings(
        groups | dict(base.settings) | {"model": model, "optimisation": optimisation}
    )


def _scores(evaluated: Evaluated) -> str:
    scores = evaluated.scores
    return (
        f"exact match {scores.exact_match:.1f}, F1 {scores.f1:.1f} "
        f"on {counted(scores.total, 'question')} in {evaluated.seconds:.1f} seconds"
    )


def _shown(evaluated: Evaluated, test: QADataset) -> Iterator[tuple[Passage, Question, Answered]]:
    """Yield the first question of some test passages with its answer."""
    answers = {answer.question_id: answer for answer in evaluated.answers}
    for passage in test.passages[:_SHOWN]:
        question = passage.questions[0]
        yield passage, question, answers[question.id]


def _next_steps(out: Path, base: str) -> str:
    # Outside its virtual environment, loraqa is found under the path alone by which it was called.
    program = "loraqa" if shutil.which("loraqa") else sys.argv[0]
    run, test = str(out / "run"), str(out / "data" / "test.json")
    commands = (
        ["inspect", "--model", base, "--data", test, "-n", "1"],
        ["evaluate", run, "--data", test],
        ["serve", run],
        ["analyze", run],
        ["export", run, "--format", "merged", "--out", str(out / "merged")],
    )
    return "\n".join(f"  {shlex.join([program, *command])}" for command in commands)
