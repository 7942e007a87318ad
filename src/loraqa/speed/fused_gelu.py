"""GPT-2's GELU as one tensor operation; transformers' own modules take five."""

from torch import nn
from transformers.activations import ACT2FN

from loraqa.model.runner import Runner, Use

# Names of the tanh-GELU in configurations: one formula, written in different ways.
_NAMES = ("gelu_new", "gelu_pytorch_tanh", "gelu_accurate", "gelu_fast")
TANH_GELUS = tuple(type(ACT2FN[name]) for name in _NAMES)


def applies(runner: Runner, _uses: frozenset[Use]) -> bool:
    """Return whether the model has such modules."""
    return any(isinstance(module, TANH_GELUS) for module in runner.model.modules())


def wrap(runner: Runner) -> Runner:
    """Replace the modules."""
    for module in list(runner.model.modules()):
        for name, child in module.named_children():
            if isinstance(child, TANH_GELUS):
                setattr(module, name, nn.GELU(approximate="tanh"))
    return runner
