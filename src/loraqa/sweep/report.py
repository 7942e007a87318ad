"""What a sweep found: a table, a CSV file, and a page with plots."""

import csv
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from loraqa import __version__
from loraqa.errors import counted
from loraqa.files import write_text
from loraqa.report.page import rendered
from loraqa.report.tables import Cell, Column, Table
from loraqa.report.time_left import clock
from loraqa.sweep.plots import f1_against, is_number, parallel_coordinates
from loraqa.sweep.settings import SweepSettings
from loraqa.sweep.tried import Tried

PAGE = "report.html"

# What the table says of a trial that was not trained to the end.
_NOTES = {"halved": "halved", "failed": "failed", "running": "under way"}


def trials_table(trials: Sequence[Tried]) -> Table:
    """Return a table of the trials, best first, without those that repeat another one.

    The time is in minutes and seconds.
    """
    shown = sorted(
        (trial for trial in trials if trial.same_as is None),
        key=lambda trial: (trial.state != "done", -(trial.f1 or 0.0), trial.number),
    )
    keys = list(dict.fromkeys(key for trial in shown for key in trial.values))
    columns = (
        Column("trial"),
        Column("F1", ".1f"),
        Column("EM", ".1f"),
        *(Column(name, ".3g") for name in _short(keys)),
        Column("time"),
        Column("note"),
    )
    rows = tuple(
        (
            trial.number,
            trial.f1,
            trial.exact_match,
            *(_cell(trial.values.get(key)) for key in keys),
            None if trial.seconds is None else clock(trial.seconds),
            _NOTES.get(trial.state, ""),
        )
        for trial in shown
    )
    return Table(counted(len(shown), "trial"), columns, rows)


def problems(trials: Sequence[Tried]) -> list[str]:
    """Return a sentence for each trial that failed."""
    failed = [trial for trial in trials if trial.state == "failed" and trial.same_as is None]
    return [f"Trial {trial.number} failed: {trial.problem}" for trial in failed]


def trials_csv(trials: Sequence[Tried]) -> str:
    """Return the trials as CSV, a line for each; lists are written as JSON."""
    keys = list(dict.fromkeys(key for trial in trials for key in trial.values))
    facts = ["number", "state", "f1", "exact_match", "seconds", "same_as", "problem"]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([*facts, *keys])
    for trial in trials:
        told = trial.to_json()
        values = [trial.values.get(key) for key in keys]
        writer.writerow([*(told[fact] for fact in facts), *map(_plain, values)])
    return text.getvalue()


def write_report(trials: Sequence[Tried], what: SweepSettings, folder: Path) -> Path:
    """Write the page of a sweep, and return its path."""
    scored = [trial for trial in trials if trial.f1 is not None and trial.same_as is None]
    page = rendered(
        "loraqa.sweep",
        title=f"Sweep in {folder.resolve().name}",
        subtitle=f"loraqa {__version__}, sampler {what.sampler}",
        table=trials_table(trials),
        problems=problems(trials),
        parallel=parallel_coordinates(scored, what.ranges) if scored else None,
        against=f1_against(scored, what.ranges) if _has_numbers(scored) else None,
    )
    write_text(folder / PAGE, page)
    return folder / PAGE


def _has_numbers(trials: Sequence[Tried]) -> bool:
    return any(is_number(value) for trial in trials for value in trial.values.values())


def _short(keys: Sequence[str]) -> list[str]:
    """Return the last part of each key, if no other one ends so; a terminal is narrow."""
    ends = [key.rpartition(".")[2] for key in keys]
    return [end if ends.count(end) == 1 else key for key, end in zip(keys, ends, strict=True)]


def _cell(value: Any) -> Cell:
    return value if is_number(value) else str(_plain(value))


def _plain(value: Any) -> Any:
    return json.dumps(value) if isinstance(value, list | dict | bool) else value
