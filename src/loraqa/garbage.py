"""Pause Python's garbage collector while many objects are created."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def no_garbage() -> Iterator[None]:
    """Disable the garbage collector, as a context manager or a decorator.

    This is for code that creates many lasting objects without cycles: the collector would traverse
    all of them repeatedly, which takes up to half of the time.
    """
    if not gc.isenabled():
        # The caller or thread that disabled the collector enables it again.
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


@contextmanager
def importing() -> Iterator[None]:
    """Disable the garbage collector during large imports, and exclude their objects afterwards."""
    with no_garbage():
        yield
        gc.freeze()
