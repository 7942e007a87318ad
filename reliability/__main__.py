"""`python -m reliability crash|scale|fuzz|trainer`: try to break loraqa, and print what held."""

import argparse
import os
import sys
import tempfile
from collections import Counter, defaultdict
from dataclasses import replace
from pathlib import Path
from typing import NoReturn, Protocol

from reliability.trials import Verdict
from reliability.watching import with_library
from reliability.works import FAMILIES


def main() -> None:
    """Run the study that the command line names."""
    options = _parser().parse_args()
    options.study(options)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("reliability", description="Try to break loraqa.")
    studies = parser.add_subparsers(required=True)
    crash = studies.add_parser("crash", help="kills, power cuts, full disks, damaged files")
    crash.add_argument("--quick", action="store_true", help="a few trials of each kind")
    crash.add_argument("--kills", type=int, help="kills of trainings at seeded instants")
    crash.add_argument("--states", type=int, help="states before a call, of each work and crash")
    crash.add_argument("--faults", type=int, help="failing calls of each kind")
    crash.add_argument("--damages", type=int, help="damaged files")
    crash.add_argument("--seed", type=int, default=0)
    crash.add_argument("--jobs", type=int, default=len(os.sched_getaffinity(0)))
    crash.add_argument("--families", nargs="+", choices=FAMILIES, default=FAMILIES)
    crash.add_argument("--only", default="", help="only groups whose name contains this")
    crash.set_defaults(study=_crash)
    scale = studies.add_parser("scale", help="kills of one of several processes that train")
    scale.add_argument("--kills", type=int, default=20)
    scale.add_argument("--seed", type=int, default=0)
    scale.set_defaults(study=_scale)
    trainer = studies.add_parser("trainer", help="the same for transformers' Trainer with PEFT")
    trainer.add_argument("--kills", type=int, default=40)
    trainer.add_argument("--states", type=int, default=40)
    trainer.add_argument("--damages", type=int, default=120)
    trainer.add_argument("--seed", type=int, default=0)
    trainer.set_defaults(study=_trainer)
    fuzz = studies.add_parser("fuzz", help="generated documents and noise for every reader")
    fuzz.add_argument("--documents", type=int, default=10_000)
    fuzz.add_argument("--first", type=int, default=0, help="number of the first document")
    fuzz.add_argument("--seconds", type=float, default=60.0, help="how long to read noise")
    fuzz.add_argument("--seed", type=int, default=0)
    fuzz.set_defaults(study=_fuzz)
    return parser


def _crash(options: argparse.Namespace) -> None:
    with tempfile.TemporaryDirectory(dir=_fast_folder()) as name:
        with_library(Path(name), "reliability")
        from reliability import crash

        size = crash.QUICK if options.quick else crash.FULL
        given = {k: getattr(options, k) for k in ("kills", "states", "faults", "damages")}
        size = replace(size, **{k: v for k, v in given.items() if v is not None})
        # Forks of this process need not import them again.
        import transformers  # noqa: F401

        import loraqa.answer.export
        import loraqa.cli
        import loraqa.finetuning
        import loraqa.reader  # noqa: F401

        table = Table()
        crash.study(
            *(Path(name), size, options.seed, options.jobs, table.add),
            *(options.only, options.families),
        )
    table.end()


def _scale(options: argparse.Namespace) -> None:
    # A process with OpenMP's threads cannot be forked. PyTorch reads this when it is imported.
    os.environ["OMP_NUM_THREADS"] = "1"
    # Forks of this process need not import them again.
    import transformers  # noqa: F401

    import loraqa.cli
    import loraqa.distributed.processes
    import loraqa.finetuning  # noqa: F401
    from reliability import scale

    table = Table()
    with tempfile.TemporaryDirectory(dir=_fast_folder()) as name:
        scale.study(Path(name), options.kills, options.seed, table.add)
    table.end()


def _trainer(options: argparse.Namespace) -> None:
    with tempfile.TemporaryDirectory(dir=_fast_folder()) as name:
        with_library(Path(name), "reliability")
        # Forks of this process need not import them again.
        import peft
        import transformers

        from reliability import trainer

        sys.stdout.write(f"transformers {transformers.__version__}, PEFT {peft.__version__}\n")
        numbers = (options.kills, options.states, options.damages, options.seed)
        found = trainer.study(Path(name), *numbers)
    for group, ends in found.items():
        listed = ", ".join(f"{count} {end}" for end, count in ends.most_common())
        sys.stdout.write(f"{group} {ends.total()} times: {listed}\n")


def _fuzz(options: argparse.Namespace) -> None:
    # A process with OpenMP's threads cannot be forked. PyTorch reads this when it is imported.
    os.environ["OMP_NUM_THREADS"] = "1"
    from reliability import fuzz

    table = Table()

    def report(document: fuzz.Document, failure: str | None, refused: bool) -> None:
        table.add(document, Verdict(failure, refused))

    with tempfile.TemporaryDirectory(dir=_fast_folder()) as name:
        fuzz.study(
            Path(name), options.documents, options.seconds, options.seed, report, options.first
        )
    table.end()


class Tried(Protocol):
    """What was tried; its text says it in full."""

    @property
    def group(self) -> str:
        """The line of the table."""


class Table:
    """Counts verdicts by group, and prints failures as they come."""

    def __init__(self) -> None:
        self._counts: dict[str, Counter[str]] = defaultdict(Counter)
        self.failed = 0

    def add(self, trial: Tried, verdict: Verdict) -> None:
        """Count the verdict on a trial."""
        kind = "failed" if verdict.failure else "said" if verdict.said else "same"
        self._counts[trial.group][kind] += 1
        if verdict.failure:
            self.failed += 1
            sys.stdout.write(f"FAILED {trial}: {verdict.failure}\n")
            sys.stdout.flush()

    def end(self) -> NoReturn:
        """Print the counts, and end the process: with status 1 if anything failed."""
        width = max(map(len, self._counts), default=0)
        line = f"{{:{width}}}  {{:>6}}  {{:>6}}  {{:>6}}  {{:>12}}\n"
        sys.stdout.write(line.format("", "tried", "held", "failed", "(by saying)"))
        total = sum(self._counts.values(), Counter())
        for group, counts in [*sorted(self._counts.items()), ("all", total)]:
            held = counts["same"] + counts["said"]
            sys.stdout.write(
                line.format(group, counts.total(), held, counts["failed"], counts["said"])
            )
        sys.exit(1 if self.failed else 0)


def _fast_folder() -> str | None:
    """Return a folder in memory, where flushing costs nothing, if there is one."""
    memory = "/dev/shm"
    return memory if os.access(memory, os.W_OK) else None


if __name__ == "__main__":
    main()
