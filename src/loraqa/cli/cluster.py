"""What commands that work on a cluster share."""

from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import Any, Literal

from loraqa.cli.output import importing_pytorch
from loraqa.errors import LoraqaError


@contextmanager
def on_cluster(
    address: str, work: Literal["answer", "sweep"], workers: int | None
) -> Iterator[Any]:
    """Connect to a Ray cluster; yield the function that does a command's work there.

    Raises:
        LoraqaError: Ray is missing.
    """
    try:
        with importing_pytorch():
            from loraqa.cluster.connect import connected

            room = import_module(f"loraqa.cluster.{work}")
    except ModuleNotFoundError as error:
        raise LoraqaError(
            f"--ray needs {error.name}; install it with `pip install -e '.[ray]'`."
        ) from None
    with connected(address):
        yield room.on_cluster(workers)


def with_addresses(words: list[str]) -> list[str]:
    """Return a command line in which each `--ray` has an address; Typer lets none be left out."""
    given = []
    for word, after in zip(words, [*words, "-"][1:], strict=True):
        given += [word, "local"] if word == "--ray" and after.startswith("-") else [word]
    return given
