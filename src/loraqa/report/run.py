"""The report of a run: one HTML file without outside references, JSON, and CSV.

FOLDER/
    evaluation.json    the last evaluation, question by question; `loraqa evaluate` writes it
    base/              an evaluation of the base model, with which the run's is compared
    comparison/        decoding strategies; `loraqa compare` writes it
    analysis/          what LoRA learned; `loraqa analyze` writes it
    report.html        all of it, with the curves of the training, and an error browser
    report.json        the figures of the page
    questions.csv      a line for each question of the evaluation

The folder is a run, or one that holds an evaluation alone.
"""

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from loraqa import __version__
from loraqa.analysis.diff import Difference, diff
from loraqa.analysis.examined import counts_of_kinds, examine
from loraqa.analysis.learned import Learned
from loraqa.analysis.outcome import FILE, Outcome
from loraqa.analysis.scores import slices
from loraqa.errors import InputError, LoraqaError, counted, explain, in_a_line
from loraqa.files import read_json, write_json, write_text
from loraqa.report.calibration import CONFIDENCE, calibration_table, confidences, figures
from loraqa.report.diff import summary_tables
from loraqa.report.errors import (
    browser_data,
    kinds_table,
    questions_csv,
    slices_tables,
    wrong_answers_table,
)
from loraqa.report.learned import findings as findings_on_adapter
from loraqa.report.learned import load_learned
from loraqa.report.learned import tables as tables_of_adapter
from loraqa.report.learned_plots import figures as figures_of_adapter
from loraqa.report.page import rendered
from loraqa.report.plots import (
    quality_against_diversity,
    reliability_diagram,
    risk_against_coverage,
    training_curves,
)
from loraqa.report.tables import Table, settings_table, training_table
from loraqa.train.data import without_answer
from loraqa.train.run import RunDirectory

if TYPE_CHECKING:
    from loraqa.answer.compare import Comparison

logger = logging.getLogger("loraqa")

# Fewer questions say little about a model.
_ENOUGH_QUESTIONS = 100

BASE_FOLDER = "base"
PAGE, FIGURES, QUESTIONS = "report.html", "report.json", "questions.csv"


class Found:
    """What a folder holds for a report.

    Attributes:
        name: the folder's name.
        outcome: the evaluation, if there is one.
        questions, slices: its questions and slices.
        gain: what differs from the evaluation of the base model on the same questions, if there is
            one.
        metrics: the records of the training, if there was one.
        settings, environment, data: what the run's files say; empty if there are none.
        compared: the decoding strategies that were compared.
        learned: what the adapter learned, if that was analysed.
    """

    def __init__(self, folder: Path) -> None:
        run = RunDirectory(folder)
        self.folder = folder
        self.name = folder.resolve().name
        self.outcome = Outcome.load(folder) if (folder / FILE).exists() else None
        self.questions = examine(self.outcome) if self.outcome else []
        self.slices = slices(self.questions)
        self.gain = self._gain()
        self.metrics = run.metrics()
        self.settings = _yaml(run.settings_file)
        self.environment = read_json(run.environment_file) if run.environment_file.exists() else {}
        self.data = read_json(run.data_file) if run.data_file.exists() else {}
        self.compared = _compared(folder)
        self.learned = _learned_of(folder)

    def _gain(self) -> Difference | None:
        if self.outcome is None or not (self.folder / BASE_FOLDER / FILE).exists():
            return None
        base = Outcome.load(self.folder / BASE_FOLDER)
        try:
            return diff(base, self.outcome)
        except InputError:
            return None

    @property
    def trained(self) -> bool:
        """Whether there is a record of a training step."""
        return any(record["kind"] == "train" for record in self.metrics)

    @property
    def empty(self) -> bool:
        """Whether there is nothing to report."""
        return not (self.outcome or self.settings or self.compared or self.learned)


def write_report(folder: Path) -> Path:
    """Write the report of what a folder holds, and return the page's path.

    Raises:
        InputError: the folder holds nothing to report, or one of its files is damaged.
        OSError: a file cannot be read or written.
    """
    found = Found(folder)
    if found.empty:
        raise InputError(
            f"{folder} holds nothing to report: neither {FILE}, which `loraqa evaluate` writes, "
            "nor a run, nor a comparison, nor an analysis; name another folder."
        )
    write_json(folder / FIGURES, _figures(found))
    if found.outcome:
        write_text(folder / QUESTIONS, questions_csv(found.questions))
    write_text(folder / PAGE, to_html(found))
    return folder / PAGE


def keep_outcome(outcome: Outcome, folder: Path) -> Path | None:
    """Write an evaluation and the report into a folder, and return the page's path.

    A line says if another evaluation was there. If writing fails, a warning says so, and the result
    is None: the evaluation itself is done.
    """

    def keep() -> Path:
        _note_replaced(outcome, folder)
        outcome.save(folder)
        return write_report(folder)

    return _or_warn(keep)


def _note_replaced(outcome: Outcome, folder: Path) -> None:
    """Log if the folder holds an evaluation of another model, on other data or otherwise made."""
    try:
        before = Outcome.load(folder)
    except (InputError, OSError):
        return
    if _made_by(before) != _made_by(outcome):
        logger.info(
            f"The report in {folder} was of {before.model} on {before.data['source']} with "
            f"{before.strategy}; this evaluation replaces it (--report FOLDER keeps one elsewhere)."
        )


def _made_by(outcome: Outcome) -> tuple[str, str, str]:
    return outcome.model, outcome.data["sha256"], outcome.strategy


def rewrite_report(folder: Path) -> Path | None:
    """Write the report of a folder like `write_report`; fail like `keep_outcome`."""
    return _or_warn(lambda: write_report(folder))


def _or_warn(write: Callable[[], Path]) -> Path | None:
    try:
        return write()
    except Exception as error:
        told = explain(error)[0] if isinstance(error, LoraqaError | OSError) else repr(error)
        logger.warning(
            f"The report could not be written ({told.rstrip('.')}); the results themselves are "
            "complete."
        )
        return None


def to_html(found: Found) -> str:
    """Return the page; all texts are escaped."""
    return rendered("loraqa.report", **_parts(found))


def _parts(found: Found) -> dict[str, Any]:
    """Return what the template shows."""
    return {
        "title": f"Report on {found.name}",
        "subtitle": _subtitle(found),
        "highlights": _highlights(found),
        "warning": _warning(found),
        "training": training_table(found.metrics) if found.trained else None,
        "without_answer": without_answer(found.data.get("train", {})),
        "curves": training_curves(found.metrics) if found.trained else None,
        "study": _study(found.compared) if found.compared else None,
        "learned": _learned(found.learned) if found.learned else None,
        "commands": list(filter(None, _commands(found))),
        "facts": _facts(found),
        "how_to_evaluate": f"loraqa evaluate {found.folder} --data dev.json",
        "outcome": found.outcome,
        **(_parts_of_outcome(found, found.outcome) if found.outcome else {}),
    }


def _parts_of_outcome(found: Found, outcome: Outcome) -> dict[str, Any]:
    given = confidences(outcome)
    return {
        "evaluated": (
            f"{counted(len(outcome.questions), 'question')} on "
            f"{counted(len(outcome.contexts), 'context')} of {outcome.data['source']}, answered "
            f"by {outcome.model} with {outcome.strategy}."
        ),
        "gain": summary_tables(found.gain, ("base", "run")) if found.gain else None,
        "wrong": wrong_answers_table(found.questions),
        "kinds": kinds_table(found.questions),
        "slices": slices_tables(found.slices),
        "calibrated": CONFIDENCE in given,
        "calibration": calibration_table(given),
        "reliability": reliability_diagram(given),
        "risk": risk_against_coverage(given),
        "browser": browser_data(outcome.contexts, found.questions),
    }


def _compared(folder: Path) -> list["Comparison"]:
    """Return the comparison of strategies in the folder, or in the run's folder for it."""
    from loraqa.report.comparison import load_comparison

    return load_comparison(folder) or load_comparison(folder / "comparison")


def _study(compared: list["Comparison"]) -> dict[str, Any]:
    from loraqa.report.comparison import choices_table, findings, samples_table, variety_table

    tables = (choices_table(compared), variety_table(compared), samples_table(compared))
    return {
        "findings": findings(compared),
        "tables": [table for table in tables if table.rows],
        "plot": quality_against_diversity(compared),
    }


def _learned_of(folder: Path) -> Learned | None:
    """Return the analysis of the adapter, if there is one; a warning names a broken one."""
    try:
        return load_learned(folder) or load_learned(folder / "analysis")
    except InputError as error:
        logger.warning(f"{error} The report leaves the analysis out.")
        return None


def _learned(learned: Learned) -> dict[str, Any]:
    return {
        "findings": findings_on_adapter(learned),
        "figures": figures_of_adapter(learned).values(),
        "tables": tables_of_adapter(learned),
    }


def _subtitle(found: Found) -> str:
    base = found.data.get("base") or (found.outcome.base if found.outcome else {})
    source = base.get("source")
    return f"loraqa {__version__}" + (f", base model {source}" if source else "")


def _highlights(found: Found) -> list[tuple[str, str]]:
    """Return the figures in large type, those of the base model before those of the run.

    They are of the evaluation. If it is not known how the base model answers its questions, those
    of the training's dev sample follow.
    """
    if found.gain:
        return [
            ("exact match", _from_to(found.gain.exact_match.first, found.gain.exact_match.second)),
            ("F1", _from_to(found.gain.f1.first, found.gain.f1.second)),
            ("questions", f"{found.gain.questions:,}"),
        ]
    return [*_of_evaluation(found.outcome), *_of_dev_sample(found.metrics)]


def _of_evaluation(outcome: Outcome | None) -> Iterator[tuple[str, str]]:
    if outcome is None:
        return
    named = {
        "exact match": "exact_match",
        "F1": "f1",
        "F1, answerable": "HasAns_f1",
        "F1, unanswerable": "NoAns_f1",
    }
    for name, key in named.items():
        if key in outcome.scores:
            yield name, f"{outcome.scores[key]:.1f}"
    yield "questions", f"{outcome.scores['total']:,}"


def _of_dev_sample(metrics: Sequence[Mapping[str, Any]]) -> Iterator[tuple[str, str]]:
    dev = [record for record in metrics if record["kind"] == "evaluation"]
    if dev:
        first, best = dev[0], max(dev, key=lambda record: record["f1"])
        yield "exact match on dev", _from_to(first["exact_match"], best["exact_match"])
        yield "F1 on dev", _from_to(first["f1"], best["f1"])
        yield "questions of dev", f"{best['total']:,}"


def _from_to(before: float, after: float) -> str:
    return f"{before:.1f} → {after:.1f}"


def _warning(found: Found) -> str | None:
    """Return a warning if there are too few questions to judge the model by."""
    scored = [record["total"] for record in found.metrics if record["kind"] == "evaluation"]
    questions = len(found.questions) or max(scored, default=0)
    if not 0 < questions < _ENOUGH_QUESTIONS:
        return None
    return (
        f"Only {counted(questions, 'question')}: too few to judge the model by. Its scores on "
        f"others may be quite different; evaluate on {_ENOUGH_QUESTIONS} or more."
    )


def _commands(found: Found) -> Iterator[str | None]:
    yield found.environment.get("command")
    yield found.outcome.command if found.outcome else None


def _facts(found: Found) -> list[Table]:
    """Return tables of what was evaluated and trained, with the fingerprints."""
    named = {
        "evaluated data": found.outcome.data if found.outcome else {},
        "evaluated model's base": _without_config(found.outcome.base) if found.outcome else {},
        "training data": found.data.get("train", {}),
        "dev data": found.data.get("dev", {}),
        "base model": _without_config(found.data.get("base", {})),
        "settings": found.settings,
        "environment": {k: v for k, v in found.environment.items() if k != "command"},
    }
    return [settings_table(title, values) for title, values in named.items() if values]


def _without_config(base: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in base.items() if key != "config"}


def _figures(found: Found) -> dict[str, Any]:
    """Return the content of `report.json`."""
    outcome = found.outcome
    of_outcome = (
        {
            "model": outcome.model,
            "strategy": outcome.strategy,
            "command": outcome.command,
            "data": outcome.data,
            "base": outcome.base,
            "scores": outcome.scores,
            "kinds": counts_of_kinds(found.questions),
            "slices": [asdict(each) for each in found.slices],
            "calibration": figures(confidences(outcome)),
        }
        if outcome
        else None
    )
    return {
        "loraqa": __version__,
        "name": found.name,
        "evaluation": of_outcome,
        "training": {
            "settings": found.settings,
            "environment": found.environment,
            "data": found.data,
            "scores": [record for record in found.metrics if record["kind"] == "evaluation"],
        }
        if found.settings
        else None,
        "strategies": [each.to_json() for each in found.compared],
        "learned": found.learned.to_json() if found.learned else None,
    }


def _yaml(path: Path) -> dict[str, Any]:
    if not path.exists():
        return {}
    try:
        value = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is damaged ({in_a_line(error)}).") from None
    return value if isinstance(value, dict) else {}
