"""Fixtures for kernels."""

from collections.abc import Iterator

import pytest

from loraqa.speed.cpu import native


@pytest.fixture
def recompiled() -> Iterator[None]:
    """Forget the loaded kernels, before and after."""
    native._library.cache_clear()
    yield
    native._library.cache_clear()
