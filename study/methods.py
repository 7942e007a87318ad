"""The methods that are compared: LoRA, and the two baselines that train weights of the base."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import PreTrainedModel

from loraqa.errors import InputError
from loraqa.files import write_tensors
from loraqa.lora.int8 import check_full_precision
from loraqa.train.checkpoint import SaveWeights, save_lora

_WEIGHTS = "model.safetensors"


class NoBiasesError(InputError):
    """BitFit cannot train a model without biases."""


@dataclass(frozen=True)
class Method:
    """A method of fine-tuning.

    Attributes:
        title: its name in tables.
        rates: learning rates to choose from by default.
        choose_weights: freezes what is not trained; None trains the LoRA of the settings.
        save_weights: writes what is trained.
    """

    title: str
    rates: tuple[float, ...]
    choose_weights: Callable[[PreTrainedModel], None] | None
    save_weights: SaveWeights


def train_all(model: PreTrainedModel) -> None:
    """Let all weights be trained.

    Raises:
        InputError: their dtype would lose their updates, or they are int8.
    """
    _check_precise(model)
    model.requires_grad_(True)


def train_biases(model: PreTrainedModel) -> None:
    """Let all biases be trained, those of norms too, and nothing else.

    This is BitFit (Ben Zaken et al. 2021). A causal model gets no new head that it would train too.

    Raises:
        NoBiasesError: the model has none.
        InputError: their dtype would lose their updates, or they are int8.
    """
    _check_precise(model)
    model.requires_grad_(False)
    biases = [p for name, p in model.named_parameters() if name.rpartition(".")[2] == "bias"]
    if not biases:
        raise NoBiasesError(
            f"BitFit trains biases, and a {type(model).__name__} of this configuration has none."
        )
    for bias in biases:
        bias.requires_grad_(True)


def _check_precise(model: PreTrainedModel) -> None:
    check_full_precision(model, "BitFit or full fine-tuning")
    if torch.finfo(model.dtype).bits < 32:
        raise InputError(
            f"A step of training is lost where weights are rounded to {model.dtype}; BitFit and "
            "full fine-tuning need model.dtype=float32."
        )


def save_trained(model: PreTrainedModel, folder: Path) -> None:
    """Write the weights that are not frozen; a tied one once, by its first name."""
    trained = {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}
    write_tensors(folder / _WEIGHTS, trained)


METHODS = {
    "lora": Method("LoRA", (5e-4, 1e-3, 2e-3), None, save_lora),
    "bitfit": Method("BitFit", (1e-2, 3e-2, 1e-1), train_biases, save_trained),
    "full": Method("full fine-tuning", (2e-5, 5e-5, 1e-4), train_all, save_trained),
}
