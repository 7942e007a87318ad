"""The real model that `make smollm2` gets. Without it these tests skip, and say so."""

from pathlib import Path

import pytest
from tools.smollm2 import PLACE


@pytest.fixture(scope="session")
def smollm2() -> Path:
    """The GGUF file of SmolLM2-135M-Instruct."""
    if not PLACE.exists():
        pytest.skip(f"no real model at {PLACE} (make smollm2)")
    return PLACE
