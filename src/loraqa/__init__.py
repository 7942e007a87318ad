"""loraqa: teach a language model to answer questions about your own texts.

    from loraqa import Reader, finetune, load_readers

`docs/architecture.md` describes the packages, from the foundation up.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from loraqa.finetuning import finetune
    from loraqa.reader import Reader, load_readers

__version__ = "0.1.0"
__all__ = ["Reader", "__version__", "finetune", "load_readers"]

_PLACES = {
    "Reader": "loraqa.reader",
    "finetune": "loraqa.finetuning",
    "load_readers": "loraqa.reader",
}


def __getattr__(name: str) -> Any:
    """Import PyTorch and transformers only for those who need them."""
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_PLACES[name]), name)


def __dir__() -> list[str]:
    return [*globals(), *_PLACES]
