"""GPT-2's GELU as one tensor operation; transformers' own modules take five."""

import torch
from torch import nn
from transformers.activations import ACT2FN

from loraqa.model.choose import TOLERANCE
from loraqa.model.runner import Runner, Use
from loraqa.speed.trial import check_module

# Names of the tanh-GELU in configurations: one formula, written in different ways.
_NAMES = ("gelu_new", "gelu_pytorch_tanh", "gelu_accurate", "gelu_fast")
_TANH_GELUS = tuple(type(ACT2FN[name]) for name in _NAMES)


def applies(runner: Runner, _uses: frozenset[Use]) -> bool:
    """Return whether the model has such modules."""
    return any(isinstance(module, _TANH_GELUS) for module in runner.model.modules())


def wrap(runner: Runner) -> Runner:
    """Compare the modules with PyTorch's GELU, then replace them."""
    model, fused = runner.model, nn.GELU(approximate="tanh")
    x = torch.linspace(-9, 9, 999, dtype=model.dtype, device=model.device, requires_grad=True)
    for plain in {type(module): module for module in model.modules()}.values():
        if isinstance(plain, _TANH_GELUS):
            check_module(fused, plain, x, TOLERANCE[model.dtype])
    for module in list(model.modules()):
        for name, child in module.named_children():
            if isinstance(child, _TANH_GELUS):
                setattr(module, name, nn.GELU(approximate="tanh"))
    return runner
