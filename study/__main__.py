"""The study: `python -m study screening --train TRAIN... --dev DEV`, then other stages.

The stages are `screening`, `repetition`, `confirmation`, `grid`, `curve` and `final`. A stage
trains an experiment at a time. The same command goes on where it was interrupted. `report` prints
the tables of what is done.
"""

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from rich.console import Console

from loraqa.errors import InputError, quote
from loraqa.report.tables import Table
from loraqa.squad import read_passages
from study.command import telling_errors
from study.experiments import (
    Experiment,
    confirmation,
    curve,
    final,
    grid,
    repetition,
    screening,
)
from study.report import Results
from study.work import Study

_ROOT = Path(__file__).parents[1]
_MODEL = _ROOT / "models" / "SmolLM2-135M-Instruct.Q4_1.gguf"
_SELECTING = {"repetition": repetition, "confirmation": confirmation}
_STAGES = ("screening", *_SELECTING, "grid", "curve", "final")


def main() -> None:
    """Do the experiments of a stage that have no result yet, or print tables."""
    with telling_errors():
        _main(_parser().parse_args())


def _main(options: argparse.Namespace) -> None:
    results = Results(options.results, read_passages(str(options.dev)))
    if options.stage == "report":
        _print_tables(results)
        return
    if not options.train:
        raise InputError("There is nothing to train on; name SQuAD v1.1 files with --train.")
    if options.stage in _SELECTING:
        _tell_of_missing(results)
    everything = _experiments(options.stage, results)
    wanted = [e for e in everything if _is_meant(e, options.only)]
    if not wanted:
        raise InputError(
            f"No experiment of this stage is called {quote(options.only)}; give --only a group, "
            "or a group and a name, such as 'rank 4'."
        )
    study = Study(str(options.model), options.train, options.dev, options.runs, results)
    for experiment in wanted:
        if not results.has(experiment):
            Console(stderr=True).rule(f"{experiment.group}: {experiment.name}, {experiment.id}")
            study.do(experiment)


def _is_meant(experiment: Experiment, only: str) -> bool:
    """Return whether `--only` names an experiment, or its group, or nothing."""
    return only in ("", experiment.group, f"{experiment.group} {experiment.name}")


def _tell_of_missing(results: Results) -> None:
    """Say which screened experiments have no result and so cannot be among the best."""
    missing = [f"{e.group} {e.name}" for e in screening() if not results.has(e)]
    if missing:
        sys.stderr.write(
            f"Screening has no result yet for {', '.join(missing)}; the best two of each group are "
            "chosen among the others.\n"
        )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "study", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("stage", choices=[*_STAGES, "report"])
    parser.add_argument("--model", type=Path, default=_MODEL)
    parser.add_argument("--train", type=Path, nargs="+", default=[], help="SQuAD v1.1 files")
    parser.add_argument("--dev", type=Path, required=True, help="a SQuAD v1.1 file")
    parser.add_argument("--runs", type=Path, default=_ROOT / "runs" / "study")
    parser.add_argument("--results", type=Path, default=_ROOT / "study" / "results")
    parser.add_argument("--only", default="", help='such as "learning rate", or "rank 4"')
    return parser


def _experiments(stage: str, results: Results) -> Iterator[Experiment]:
    if stage in _SELECTING:
        return _SELECTING[stage](results.f1)
    return {"screening": screening, "grid": grid, "curve": curve, "final": final}[stage]()


def _print_tables(results: Results) -> None:
    for stage in _STAGES:
        experiments = list(_experiments(stage, results))
        for table in _tables(stage, experiments, results):
            if table.rows:
                print(f"\n{stage}\n\n{table.to_markdown()}")


def _tables(stage: str, experiments: Sequence[Experiment], results: Results) -> Iterator[Table]:
    if stage == "grid":
        yield results.by_rate(experiments)
        return
    for group in dict.fromkeys(experiment.group for experiment in experiments):
        yield results.table(group, [e for e in experiments if e.group == group])


if __name__ == "__main__":
    main()
