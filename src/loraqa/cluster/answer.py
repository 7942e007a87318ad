"""Answer the parts of a file with several readers, each an actor of Ray Data.

What is spread are parts, which hold the rows of a context together. A reader loads the model once,
reads its parts from the file, and sends back answers; only this process writes. A part whose reader
or machine is lost is answered by another one.
"""

import json
import logging
import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import pyarrow
import ray
import ray.data

from loraqa.answer.progress import Progress
from loraqa.batch.answer import AnswerParts, answer
from loraqa.batch.options import Options
from loraqa.batch.parts import Parts
from loraqa.batch.plan import Part, chunks
from loraqa.batch.source import Reply, Source
from loraqa.cluster.connect import LOSSES, workers_and_needs
from loraqa.errors import LoraqaError, counted, explain, explained
from loraqa.reader import Reader

logger = logging.getLogger("loraqa")


def on_cluster(readers: int | None = None) -> AnswerParts:
    """Return a function that answers parts on the cluster to which this process is connected.

    File and model have the same paths on all machines.

    Args:
        readers: how many readers there are at most; by default one for each GPU, or if there is
            none, one for each machine.
    """
    return partial(_answer_parts, readers)


def _answer_parts(
    readers: int | None,
    source: Source,
    missing: Sequence[Part],
    options: Options,
    parts: Parts,
    progress: Progress,
) -> None:
    left = {part.number: part for part in missing}
    total = sum(part.rows for part in missing)
    progress(0, total)

    def ask() -> Iterator[Any]:
        return _answers(source, [*left.values()], options, readers) if left else iter(())

    for given in _despite_losses(ask):
        if given["problem"]:
            raise explained(given["problem"], given["status"])
        for message in json.loads(given["warnings"]):
            logger.warning("%s", message)
        part = left.pop(given["number"])
        parts.save(part, [Reply(*cells) for cells in json.loads(given["replies"])])
        progress(total - sum(part.rows for part in left.values()), total)
    if left:
        raise LoraqaError(f"Ray lost {counted(len(left), 'part')}; give the same command again.")


def _despite_losses(answers: Callable[[], Iterator[Any]]) -> Iterator[Any]:
    """Yield answers; begin anew with what is left where Ray does not send a lost part again.

    Ray Data gives up, in spite of its retries, if an actor's machine was lost just before.
    """
    for losses in range(LOSSES + 1):
        try:
            yield from answers()
            return
        except ray.exceptions.ActorUnavailableError:
            if losses == LOSSES:
                raise


def _answers(source: Source, missing: Sequence[Part], options: Options, readers: int | None) -> Any:
    """Return an iterator over the answers to parts, in any order."""
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)
    # A block for each part, so that each is sent back as soon as it is answered.
    spread = ray.data.from_items(
        [asdict(part) for part in missing], override_num_blocks=len(missing)
    )
    most, needs = workers_and_needs(readers)
    with warnings.catch_warnings():
        # By default Ray Data restarts an actor for ever, and no other parameter limits that yet.
        warnings.filterwarnings("ignore", "`ray_remote_args` is deprecated")
        answered = spread.map_batches(
            _Answering,
            fn_constructor_args=(source, options, Path.cwd()),
            batch_size=1,
            batch_format="pyarrow",
            compute=ray.data.ActorPoolStrategy(min_size=1, max_size=most, initial_size=most),
            max_restarts=LOSSES,
            max_task_retries=LOSSES,
            **needs,
        )
    return answered.iter_rows()


class _Answering:
    """A reader; it loads the model with its first part."""

    def __init__(self, source: Source, options: Options, folder: Path) -> None:
        # Paths may be relative.
        os.chdir(folder)
        self._source, self._options = source, options

    def __call__(self, batch: pyarrow.Table) -> pyarrow.Table:
        return pyarrow.Table.from_pylist([self._answer(Part(**each)) for each in batch.to_pylist()])

    def _answer(self, part: Part) -> dict[str, Any]:
        """Return the replies to a part, or why there are none."""
        given = {"number": part.number, "replies": "", "warnings": "", "problem": "", "status": 0}
        try:
            ((_, chunk),) = chunks(self._source, [part])
            with _kept_warnings() as kept:
                replies = answer(self._reader, chunk, self._options)
        except (LoraqaError, OSError) as error:
            problem, status = explain(error)
            return {**given, "problem": problem, "status": status}
        return {**given, "replies": json.dumps(replies), "warnings": json.dumps(kept)}

    @cached_property
    def _reader(self) -> Reader:
        return self._options.reader.load()


@contextmanager
def _kept_warnings() -> Iterator[list[str]]:
    """Yield a list that gets the warnings logged meanwhile; the logs of readers are not shown."""
    messages: list[str] = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: messages.append(record.getMessage())  # type: ignore[method-assign]
    logger.addHandler(handler)
    try:
        yield messages
    finally:
        logger.removeHandler(handler)
