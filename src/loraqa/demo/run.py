"""The demo: make data, train, score, compare strategies, show answers, write a report.

OUT/
    data/train.json, dev.json, test.json   the small world as SQuAD data
    run/                                   the run, as `loraqa train` writes it
    comparison/                            decoding strategies, as `loraqa compare` writes them
    report.html                            all results on a page
"""

import logging
import shutil
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from loraqa.answer.compare import Comparison, compare
from loraqa.answer.evaluate import Evaluated, evaluate, sample_questions
from loraqa.answer.reader import Answered
from loraqa.answer.strategies import parse_strategy
from loraqa.demo import check_room
from loraqa.demo.world import test_passages, train_passages
from loraqa.errors import counted
from loraqa.files import contents, one_writer, replacing_folder, temporary_folder
from loraqa.finetune import FinetuneResult, finetune
from loraqa.reader import Reader
from loraqa.report import (
    Example,
    Examples,
    Highlights,
    Plot,
    Report,
    before_after_table,
    settings_table,
    strategies_table,
    training_table,
)
from loraqa.report.answers import answer_lines
from loraqa.report.comparison import save_comparison
from loraqa.report.plots import before_after, quality_against_diversity, training_curves
from loraqa.report.progress import answering_progress
from loraqa.squad import Passage, QADataset, Question, write_official
from loraqa.train.run import RunDirectory
from loraqa.train.settings import RunSettings, parse_settings

logger = logging.getLogger("loraqa")

BASE = Path(__file__).parent / "base"
"""The embedded base model."""

STRATEGIES = ("greedy", "temperature:1", "top-k:40", "top-p:0.9", "min-p:0.05", "beam:4", "span")

_SHOWN = 5


@dataclass(frozen=True)
class DemoSize:
    """How much the demo does.

    Attributes:
        train_contexts, dev_contexts, test_contexts: paragraphs of each part of the data.
        epochs: passes over the training data.
        compared_questions: test questions that every decoding strategy answers.
    """

    train_contexts: int = 2000
    dev_contexts: int = 40
    test_contexts: int = 100
    epochs: int = 1
    compared_questions: int = 100


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
            "strategies": [asdict(row) for row in self.compared],
            "report": str(self.report),
        }


def run_demo(
    out: Path, console: Console, size: DemoSize = DemoSize(), without: Sequence[str] = ()
) -> DemoResult:
    """Run the demo in the folder `out`, which may hold an earlier demo: it is replaced.

    Args:
        out: folder for data, run, comparison and report.
        console: shows what happens.
        size: how much to do.
        without: names of accelerations to leave out, or "all".

    Raises:
        InputError: `out` holds something else, another process writes there, or a name in
            `without` is unknown.
    """
    check_room(out)
    with one_writer(out):
        return _run_demo(out, console, size, without)


def _run_demo(out: Path, console: Console, size: DemoSize, without: Sequence[str]) -> DemoResult:
    _make_room(out)
    test = _write_data(out / "data", size)
    settings = _settings(out / "data", size.epochs, without)
    console.print(
        f"A small world, told in {size.train_contexts:,} paragraphs with questions. No name in the "
        f"{size.test_contexts:,} test paragraphs occurs in training.\n"
    )

    console.print("Before: the base model, which has never seen a question answered.")
    with answering_progress() as progress:
        before = evaluate(Reader.load(BASE, without=without), test, progress=progress)
    console.print(_scores(before))

    console.print("\nTraining a LoRA adapter.")
    run = RunDirectory(out / "run")
    with run.telling_what_is_kept():
        trained = finetune(settings, run.path, command=f"loraqa demo --out {out}")
    reader = Reader.load(out / "run", without=without)
    with answering_progress() as progress:
        after = evaluate(reader, test, progress=progress)
    sample = sample_questions(test, size.compared_questions, settings.seed)
    strategies = [parse_strategy(name) for name in STRATEGIES]
    with answering_progress() as progress:
        compared = compare(reader, sample, strategies, progress=progress)
    save_comparison(compared, out / "comparison")
    console.print(f"\nAfter {trained.training_seconds:.0f} seconds of training: {_scores(after)}\n")
    console.print(strategies_table(compared).to_rich())

    for passage, question, answer in _shown(after, test):
        console.print(f"\n{passage.context}", style="dim")
        for line in answer_lines(passage.context, [question.text], [answer]):
            console.print(line)

    report = out / "report.html"
    result = DemoResult(before, after, trained, compared, report)
    _report(result, test, settings, run).save(report)
    console.print(f"\nThe report is {report}. To go on:\n{_next_steps(out)}", soft_wrap=True)
    return result


def _make_room(out: Path) -> None:
    """Remove an earlier demo."""
    check_room(out)
    # Its data, by which it is known, go last, so that what a kill leaves is still a demo.
    parts = sorted(contents(out), key=lambda path: path.name == "data")
    with temporary_folder(out) as old:
        for path in parts:
            path.rename(old / path.name)


def _write_data(folder: Path, size: DemoSize) -> QADataset:
    """Write the three parts of the data and return the test part."""
    test = test_passages(seed=2, count=size.test_contexts)
    parts = {
        "train": train_passages(seed=0, count=size.train_contexts),
        "dev": test_passages(seed=1, count=size.dev_contexts),
        "test": test,
    }
    with replacing_folder(folder) as written:
        for name, passages in parts.items():
            write_official(written / f"{name}.json", passages, "1.1")
    return QADataset.from_passages(test, "1.1")


def _settings(data: Path, epochs: int, without: Sequence[str]) -> RunSettings:
    return parse_settings(
        {
            "model": {"source": str(BASE), "dtype": "float32"},
            "data": {"train": str(data / "train.json"), "dev": str(data / "dev.json")},
            "lora": {"rank": 16, "alpha": 32.0},
            "optimisation": {
                "epochs": epochs,
                "questions_per_step": 64,
                "learning_rate": 2e-3,
            },
            "evaluation": {"every": 60, "questions": 100, "max_answer_tokens": 24},
            "checkpoint": {"every": 60},
            "speed": {"without": without},
        }
    )


def _scores(evaluated: Evaluated) -> str:
    scores = evaluated.scores
    return (
        f"exact match {scores.exact_match:.1f}, F1 {scores.f1:.1f} "
        f"on {counted(scores.total, 'question')} ({evaluated.questions_per_second:.0f} a second)"
    )


def _report(
    result: DemoResult, test: QADataset, settings: RunSettings, run: RunDirectory
) -> Report:
    before, after = result.before.to_json(), result.after.to_json()
    metrics = run.metrics()
    return Report(
        "loraqa demo",
        "A small language model learns to answer questions about texts it has never seen.",
        [
            Highlights(
                [
                    ("exact match", f"{before['exact_match']:.1f} → {after['exact_match']:.1f}"),
                    ("F1", f"{before['f1']:.1f} → {after['f1']:.1f}"),
                    ("training", f"{result.trained.training_seconds:.0f} s"),
                    ("answers a second", f"{result.after.questions_per_second:.0f}"),
                ]
            ),
            before_after_table(before, after),
            Plot(before_after(before, after), "Scores on test questions about unseen names"),
            training_table(metrics),
            Plot(training_curves(metrics), "Loss, scores and learning rate while training"),
            strategies_table(result.compared),
            Plot(
                quality_against_diversity(result.compared),
                "F1 of each decoding strategy against how much its answers vary",
            ),
            Examples("Test questions and answers", _examples(result.after, test)),
            settings_table("Settings", settings.model_dump(mode="json")),
        ],
    )


def _shown(evaluated: Evaluated, test: QADataset) -> Iterator[tuple[Passage, Question, Answered]]:
    """Yield the first question of some test passages with its answer."""
    answers = {answer.question_id: answer for answer in evaluated.answers}
    for passage in test.passages[:_SHOWN]:
        question = passage.questions[0]
        yield passage, question, answers[question.id]


def _examples(evaluated: Evaluated, test: QADataset) -> list[Example]:
    examples = []
    for passage, question, answer in _shown(evaluated, test):
        exact = answer.start is not None and passage.context.startswith(answer.text, answer.start)
        examples.append(
            Example(
                context=passage.context,
                question=question.text,
                answer=answer.text,
                start=answer.start if exact else None,
                right=list(question.golds),
            )
        )
    return examples


def _next_steps(out: Path) -> str:
    # Outside its virtual environment, loraqa is found under the path alone by which it was called.
    program = "loraqa" if shutil.which("loraqa") else sys.argv[0]
    return "\n".join(
        f"  {program} {command}"
        for command in (
            f"inspect --model {BASE} --data {out}/data/test.json -n 1",
            f"evaluate {out}/run --data {out}/data/test.json --strategy span",
            f"serve {out}/run",
            f"analyze {out}/run",
            f"export {out}/run --format merged --out {out}/merged",
        )
    )
