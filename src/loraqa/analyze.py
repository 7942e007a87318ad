"""The recipe of the analysis: load an adapter, measure it, compare it, and take parts of it away.

learned = analyze(Path("runs/squad"), against=[Path("runs/rank8")])
print(learned.updates[0].effective_rank)
"""

import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from transformers import PreTrainedModel

from loraqa.adapter.find import adapter_of
from loraqa.adapter.info import INFO, BaseInfo, read_adapter_info
from loraqa.analysis.learned import Checkpoint, Compared, Effects, Learned
from loraqa.analysis.updates import (
    Update,
    compare,
    layers_of_kinds,
    likenesses,
    measure,
    spectrum,
)
from loraqa.answer.decode import Strategy
from loraqa.answer.effects import measure_effects
from loraqa.answer.load import load_adapted
from loraqa.answer.progress import Progress
from loraqa.errors import InputError, explain
from loraqa.lora.adapter import load_adapter
from loraqa.lora.merge import unload
from loraqa.lora.updates import updates
from loraqa.reader_options import ReaderOptions
from loraqa.squad import QADataset
from loraqa.train.manifest import ADAPTER, check_whole, checkpoint_folder, saved_steps
from loraqa.train.run import RunDirectory

logger = logging.getLogger("loraqa")


def analyze(source: Path, *, base: str | None = None, against: Sequence[Path] = ()) -> Learned:
    """Measure the adapter of a run or folder, and compare it with its checkpoints and with others.

    Args:
        source: a run, or an adapter that loraqa or PEFT wrote.
        base: the base model, if it moved or the adapter does not name one.
        against: other runs or adapters of the same base.

    Raises:
        InputError: an adapter or its base is missing, broken or not supported, or another adapter
            has another base or no matrix in common.
    """
    others = [adapter_of(each) for each in against]
    model, _, info = load_adapted(source, base=base, device="cpu")
    own = updates(model)
    return Learned(
        adapter=str(source),
        base=str(info.base.source),
        updates=tuple(map(measure, own)),
        layers=tuple(layers_of_kinds(own)),
        checkpoints=tuple(_checkpoints(model, source, own)),
        others=tuple(
            _compared(model, name, folder, own, info.base)
            for name, folder in zip(against, others, strict=True)
        ),
    )


def effects(
    options: ReaderOptions,
    dataset: QADataset,
    strategy: Strategy,
    *,
    seed: int = 0,
    progress: Progress | None = None,
) -> Effects:
    """Score the answers of a run or adapter after each change of it (see `measure_effects`).

    Raises:
        InputError: as for `ReaderOptions.load` and `measure_effects`.
    """
    # Packed weights hold the sum of W and ΔW.
    left_out = ",".join(filter(None, (options.without, "prepacked-weights")))
    reader = replace(options, without=left_out).load()
    return measure_effects(reader, dataset, strategy, seed=seed, progress=progress)


def _checkpoints(model: PreTrainedModel, source: Path, own: Sequence[Update]) -> list[Checkpoint]:
    """Measure the checkpoints of a run. A warning names those that are damaged."""
    folder = RunDirectory(source.expanduser()).checkpoints
    found = []
    for step in saved_steps(folder):
        checkpoint = checkpoint_folder(folder, step)
        try:
            check_whole(checkpoint)
        except (InputError, OSError) as error:
            logger.warning(f"{explain(error)[0]} This checkpoint is left out.")
            continue
        then = _load(model, checkpoint / ADAPTER)
        found.append(Checkpoint(step, tuple(map(spectrum, then)), tuple(likenesses(own, then))))
    return found


def _compared(
    model: PreTrainedModel, name: Path, folder: Path, own: Sequence[Update], base: BaseInfo
) -> Compared:
    if (folder / INFO).exists() and (changes := read_adapter_info(folder).base.changes(base)):
        raise InputError(
            f"The base model of {name} is not that of the analysed adapter (other "
            f"{' and '.join(changes)}); give adapters of the same base with --against."
        )
    others = _load(model, folder)
    if not {each.name for each in own} & {each.name for each in others}:
        raise InputError(
            f"{name} adapts no matrix that the analysed adapter adapts, only such as "
            f"{others[0].name}; give another adapter with --against."
        )
    return compare(str(name), own, others)


def _load(model: PreTrainedModel, folder: Path) -> list[Update]:
    """Put the adapter of a folder into the model, in the place of the one that is there."""
    unload(model)
    load_adapter(model, folder)
    return updates(model)
