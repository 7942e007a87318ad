"""Making many objects at once."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def no_garbage() -> Iterator[None]:
    """Collect no garbage, in a `with` or as a decorator.

    For what makes many objects that stay, and no cycles: the collector would walk over all of them
    again and again, which takes up to half of the time.
    """
    if not gc.isenabled():
        # Whoever turned it off turns it on again, be it another thread.
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


@contextmanager
def importing() -> Iterator[None]:
    """Collect no garbage while large libraries are imported, nor look at what they made after."""
    with no_garbage():
        yield
        gc.freeze()
