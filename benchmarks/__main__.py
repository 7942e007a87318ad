"""`python -m benchmarks [--quick] [--only SUITE ...]`: compare loraqa with its peers.

Prints a table for each suite and one for the targets; writes benchmarks/results/SUITE.json (with
--quick: SUITE-quick.json), with the kind of machine; figures of different kinds are not comparable.
The full run also measures the shape of SmolLM2, contexts with one question each, an activated LoRA,
and an int8 base, leaves out one acceleration at a time, measures how time and memory grow, and
draws docs/training-all-linear.png and docs/scaling.png. On a machine with GPUs, all contenders use
the first GPU, and file names end in -gpu; instead of leaving out accelerations, loraqa trains on
all of SQuAD v1.1 and answers its dev split. Nothing else should run on the machine meanwhile.
"""

import argparse
import math
import os
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path

from rich.console import Console

from benchmarks.ablation import ablation, answering
from benchmarks.base import SMOLLM2, on_a_gpu
from benchmarks.harness import (
    ROOT,
    Conclusion,
    Groups,
    Job,
    Progress,
    Suite,
    Target,
    best,
    compete,
    prepare,
)
from benchmarks.machine import fastest_precision, machine
from benchmarks.report import (
    contenders_table,
    ratios_table,
    scaling_plot,
    speed_plot,
    targets_table,
)
from benchmarks.scaling import SHAPES, scaling
from benchmarks.suites import (
    FULL,
    GPU,
    QUICK,
    Scale,
    activated,
    epoch,
    evaluation_gpt2,
    evaluation_llama,
    int8,
    single,
    training_gpt2,
    training_llama,
    whole,
)
from benchmarks.text import SOURCE
from loraqa.files import write_json
from loraqa.report.plots import save_png

_TINY = {"gpt2": (2, 64, 2), "llama": (2, 48, 3, 1, 96)}
# Plots by suite; they are saved in docs/ under the name of the results file.
_PLOTS = {"scaling": scaling_plot, "training-all-linear": speed_plot}
# Suites whose targets are for a GPU; all other targets are for two CPU cores.
_ON_A_GPU = ("epoch",)
_WIDTH = 132
# With a higher load, other work would distort the figures.
_BUSY = 0.5


def main() -> None:
    """Run the suites that the command line selects."""
    options = _parser().parse_args()
    scale = QUICK if options.quick else GPU if on_a_gpu() else FULL
    load = os.getloadavg()[0]
    if load > _BUSY:
        sys.stderr.write(f"The machine is busy (load {load:.1f}); speeds will be too low.\n")
    console = Console(width=_WIDTH)
    for note in _notes(scale):
        console.print(note)
    targets: list[Target] = []
    failed: list[str] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        suites = _suites(folder, scale, fastest_precision(), options.only)
        preparations = _preparations(folder, suites, options.tiny)
        progress = Progress(len(preparations) + sum(suite.runs for suite in suites))
        prepare(preparations, progress)
        for suite in suites:
            groups = compete(suite, progress)
            conclusion = suite.conclude(groups)
            if on_a_gpu() and suite.name not in _ON_A_GPU:
                conclusion = replace(conclusion, targets=())
            targets += [replace(t, name=f"{suite.name}: {t.name}") for t in conclusion.targets]
            console.print(contenders_table(suite.name, groups), ratios_table(conclusion.ratios))
            if not options.tiny:
                _save(suite, groups, conclusion, scale, load)
            failed += [
                f"{suite.name}, {name}: {best(group).error}"
                for name, group in groups.items()
                if best(group).error
            ]
    if targets:
        console.print(targets_table(targets))
    if failed:
        sys.exit("\n".join(["Not measured:", *failed]))


def _notes(scale: Scale) -> Iterator[str]:
    """Yield notes about all figures."""
    yield f"The texts are from {SOURCE}."
    if scale is QUICK and not on_a_gpu():
        yield (
            "The quick run has few questions per context and measures once, so it may miss targets "
            "that the full run reaches."
        )
    if on_a_gpu():
        yield (
            "All contenders use the GPU, so targets for two CPU cores are not judged. To measure "
            "the CPU, hide the GPU: put CUDA_VISIBLE_DEVICES= before the command."
        )
    elif fastest_precision() == "float32":
        yield (
            "This processor does not multiply bf16 matrices, so all contenders compute in fp32, "
            "and targets for bf16 are not judged."
        )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("benchmarks", description="Compare loraqa with its peers.")
    parser.add_argument("--quick", action="store_true", help="measure less, in 5 minutes")
    parser.add_argument(
        "--only", nargs="+", metavar="SUITE", help="run only suites whose names begin with SUITE"
    )
    parser.add_argument(
        "--tiny", action="store_true", help="use a model of two layers, to test the benchmark"
    )
    return parser


def _suites(folder: Path, scale: Scale, precision: str, only: Sequence[str] | None) -> list[Suite]:
    gpt2, llama = str(folder / "gpt2"), str(folder / "llama")
    suites = [
        *(training_gpt2(gpt2, adapter, scale, precision) for adapter in scale.adapters),
        *(evaluation_gpt2(gpt2, tokens, scale, precision) for tokens in scale.answer_tokens),
        whole(gpt2, scale, precision),
    ]
    if scale is not QUICK or only:
        suites += [
            training_llama(llama, gpt2, scale, precision),
            evaluation_llama(llama, gpt2, scale, precision),
        ]
    if scale is not QUICK:
        suites += [single(gpt2, scale, precision), *_of_device(gpt2, llama, scale, precision)]
        suites += [scaling(folder, scale.steps, precision)]
    chosen = [suite for suite in suites if not only or suite.name.startswith(tuple(only))]
    if not chosen:
        sys.exit(f"No suite has such a name; the suites are {', '.join(s.name for s in suites)}.")
    return chosen


def _of_device(gpt2: str, llama: str, scale: Scale, precision: str) -> list[Suite]:
    """Return the suites that only a GPU, or only a CPU, runs."""
    if on_a_gpu():
        return [epoch(gpt2, precision)]
    return [
        activated("training-activated", gpt2, gpt2, scale, precision),
        activated("training-activated-llama", llama, gpt2, scale, precision),
        int8("training-int8-llama", llama, gpt2, scale, precision),
        ablation("ablation", "gpt2", gpt2, gpt2, scale, precision),
        ablation("ablation-llama", "llama", llama, gpt2, scale, precision),
        answering(gpt2, scale, precision),
    ]


def _preparations(folder: Path, suites: Sequence[Suite], tiny: bool) -> list[Job]:
    """Return the jobs that write models, adapters and passages."""
    names = SHAPES if any(suite.name == "scaling" for suite in suites) else ["gpt2"]
    models = [
        _model(folder / name, "gpt2", _TINY["gpt2"] if tiny else SHAPES[name]) for name in names
    ]
    if any(suite.name.endswith("llama") for suite in suites):
        models.append(_model(folder / "llama", "llama", _TINY["llama"] if tiny else SMOLLM2))
    files = {name: how for suite in suites for name, how in suite.files.items()}
    return [
        *models,
        Job("write passages", "text.write", {"folder": str(folder / "gpt2"), "files": files}),
    ]


def _model(folder: Path, family: str, size: Sequence[int]) -> Job:
    options = {"folder": str(folder), "family": family, "size": size}
    return Job(f"write {folder.name}", "base.prepare", options)


def _save(suite: Suite, groups: Groups, conclusion: Conclusion, scale: Scale, load: float) -> None:
    name = suite.name + ("-quick" if scale is QUICK else "-gpu" if on_a_gpu() else "")
    write_json(
        ROOT / "benchmarks" / "results" / f"{name}.json",
        {
            "ratios": {k: v for k, v in conclusion.ratios.items() if not math.isnan(v)},
            "targets": [asdict(target) for target in conclusion.targets],
            "machine": {
                **machine(" ".join(["python -m benchmarks", *sys.argv[1:]])),
                "load_before": load,
            },
            "texts": SOURCE,
            "scale": asdict(scale),
            "contenders": {
                side: [contender.to_json() for contender in group] for side, group in groups.items()
            },
        },
    )
    plot = _PLOTS.get(suite.name) if scale is not QUICK else None
    if plot:
        save_png(plot(groups), ROOT / "docs" / f"{name}.png")


if __name__ == "__main__":
    main()
