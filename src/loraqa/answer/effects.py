"""What each part of an adapter is worth: answers are scored after it is taken away."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial

import numpy as np
from numpy.typing import NDArray

from loraqa.analysis.learned import (
    KIND,
    LAYER,
    RANK,
    SCALE,
    Effect,
    Effects,
    layer_and_kind,
    name_of,
)
from loraqa.analysis.significance import Estimate
from loraqa.analysis.updates import Update
from loraqa.answer.decode import Strategy
from loraqa.answer.evaluate import evaluate
from loraqa.answer.progress import Progress
from loraqa.answer.reader import Reader
from loraqa.errors import InputError
from loraqa.lora.updates import cut, restoring, scale, updates
from loraqa.squad import QADataset

Change = tuple[str, int | float | str, Callable[[], None]]
"""Kind and value of a change (see `Effect`), and a function that makes it."""

# 0 is the base model, 1 the adapter.
_FACTORS = (0.0, 0.25, 0.5, 0.75, 1.0, 1.25, 1.5, 2.0)


def measure_effects(
    reader: Reader,
    dataset: QADataset,
    strategy: Strategy,
    *,
    seed: int = 0,
    progress: Progress | None = None,
) -> Effects:
    """Score the answers to a data set after each change of the adapter, one change at a time.

    The updates of one layer, or of one kind of matrix, are switched off; all are cut to a rank, 1,
    2, 4 and so on; all are scaled by a factor. Afterwards the adapter is as it was.

    Args:
        reader: its model holds the adapter in `LoraLinear` layers, not in packed weights.
        dataset: the questions.
        strategy: how answers are written.
        seed: random seed of strategies that sample.
        progress: called with the number of answers given so far, and with the change.

    Raises:
        InputError: the model has no adapter, there are no questions, or one leaves no room for a
            context.
    """
    found = updates(reader.runner.model)
    if not found:
        raise InputError(
            "The model has no adapter whose updates could be changed; load one, without the "
            "acceleration prepacked-weights."
        )
    changes = list(_changes(found))
    questions = len(dataset.order)
    scores = []
    for number, (change, value, make) in enumerate(changes):
        part, before = name_of(change, value), number * questions
        show = progress and partial(_show, progress, part, before, len(changes) * questions)
        with restoring(found):
            make()
            evaluated = evaluate(reader, dataset, strategy, seed=seed, progress=show)
        by_question = evaluated.scores.by_question
        scores.append(
            [(by_question[q.id].exact_match, by_question[q.id].f1) for q in dataset.questions]
        )
    places = [i for i, passage in enumerate(dataset.passages) for _ in passage.questions]
    contexts: NDArray[np.int64] = np.unique(places, return_inverse=True)[1]
    return Effects(
        dataset.source,
        strategy.name,
        len(contexts),
        int(contexts.max()) + 1,
        _effects(changes, 100 * np.array(scores, dtype=np.float64), contexts),
    )


def _changes(found: Sequence[Update]) -> Iterator[Change]:
    for factor in _FACTORS:
        yield SCALE, factor, partial(scale, found, factor)
    most = max(len(update.a) for update in found)
    for rank in (2**power for power in range(most.bit_length())):
        if rank < most:
            yield RANK, rank, partial(cut, found, rank)
    places = [layer_and_kind(update.name) for update in found]
    for layer in sorted({layer for layer, _ in places if layer is not None}):
        chosen = [u for u, place in zip(found, places, strict=True) if place[0] == layer]
        yield LAYER, layer, partial(scale, chosen, 0.0)
    for kind in dict.fromkeys(kind for _, kind in places):
        chosen = [u for u, place in zip(found, places, strict=True) if place[1] == kind]
        yield KIND, kind, partial(scale, chosen, 0.0)


def _effects(
    changes: Sequence[Change], scores: NDArray[np.float64], contexts: NDArray[np.int64]
) -> tuple[Effect, ...]:
    """Return the effects of changes, whose scores in percent are (changes, questions, 2)."""
    (adapted,) = (
        each
        for (change, value, _), each in zip(changes, scores, strict=True)
        if (change, value) == (SCALE, 1.0)
    )
    return tuple(
        Effect(
            change,
            value,
            exact_match=Estimate.of(each[:, 0], contexts),
            f1=Estimate.of(each[:, 1], contexts),
            exact_match_lost=Estimate.of(adapted[:, 0] - each[:, 0], contexts),
            f1_lost=Estimate.of(adapted[:, 1] - each[:, 1], contexts),
        )
        for (change, value, _), each in zip(changes, scores, strict=True)
    )


def _show(
    progress: Progress, part: str, before: int, total: int, done: float, _of_part: int
) -> None:
    progress(before + done, total, part)
