"""Hide what transformers shows while it loads and saves models."""

from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def no_report() -> Iterator[None]:
    """Hide transformers' table of tensors that are missing or left out: `load` tells of them."""
    from transformers.utils import logging as transformers_logging

    level = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(level)


@contextmanager
def no_bars() -> Iterator[None]:
    """Hide transformers' progress bars, because reading or writing a folder is quick."""
    from transformers.utils import logging as transformers_logging

    shown = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            transformers_logging.enable_progress_bar()
