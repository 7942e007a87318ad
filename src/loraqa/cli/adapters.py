"""Adapters by name, as `--adapter NAME=RUN` gives them."""

import re
from collections.abc import Sequence
from pathlib import Path

from loraqa.errors import InputError, quote


def named_adapters(adapters: Sequence[str]) -> dict[str, Path]:
    """Return the run or adapter folder of each name, given as NAME=RUN."""
    from loraqa.adapter.choice import check_name
    from loraqa.adapter.find import adapter_of

    named: dict[str, Path] = {}
    for text in adapters:
        name, equals, source = text.partition("=")
        if not (equals and source):
            raise InputError(f"--adapter {quote(text)} is not NAME=RUN, as in news=runs/news.")
        check_name(name)
        if name in named:
            raise InputError(f"--adapter gives the name {name} twice; choose another one.")
        named[name] = Path(source)
        adapter_of(source)
    return named


def with_own_name(run: Path, others: dict[str, Path]) -> dict[str, Path]:
    """Put a run before other adapters. It is called as its folder, without unusual characters."""
    from loraqa.adapter.find import adapter_of

    adapter_of(run)
    name = re.sub(r"[^\w.-]", "-", run.expanduser().resolve().name)
    if name in others:
        raise InputError(
            f"--adapter {name}=… has the name of {run}, the first adapter; choose another one."
        )
    return {name: run, **others}
