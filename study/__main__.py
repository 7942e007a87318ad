"""Run the study, an experiment at a time; the same command goes on where it was interrupted."""

import argparse
from pathlib import Path

from rich.console import Console

from study import experiments
from study.work import Study

_ROOT = Path(__file__).parents[1]


def main() -> None:
    """Do all experiments of a stage that have no result yet."""
    parser = argparse.ArgumentParser("study", description=__doc__)
    parser.add_argument("stage", choices=["screening", "curve"])
    parser.add_argument(
        "--model", default=str(_ROOT / "models" / "SmolLM2-135M-Instruct.Q4_1.gguf")
    )
    parser.add_argument("--train", type=Path, nargs="+", required=True)
    parser.add_argument("--dev", type=Path, required=True)
    parser.add_argument("--runs", type=Path, default=_ROOT / "runs" / "study")
    parser.add_argument("--results", type=Path, default=_ROOT / "study" / "results")
    parser.add_argument("--only", default="", help="only experiments whose id contains this")
    options = parser.parse_args()
    study = Study(options.model, options.train, options.dev, options.runs, options.results)
    console = Console(stderr=True)
    for experiment in getattr(experiments, options.stage)():
        if options.only in experiment.id and not study.result_file(experiment).exists():
            console.rule(experiment.id)
            study.do(experiment)


if __name__ == "__main__":
    main()
