"""The last layer, computed only at the tokens whose logits are wanted.

Of every other token only the last layer's keys and values count. So that layer runs twice: over
all tokens as far as its attention, where keys and values are taken; then over the wanted tokens
alone, which attend to those.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import Tensor, nn
from torch.nn.functional import pad
from transformers import PreTrainedModel

from loraqa.model.attention import PackedTrees
from loraqa.prompt.batch import TreeBatch


def wanted_logits(model: PreTrainedModel, batch: TreeBatch, trees: PackedTrees) -> Tensor:
    """Logits (S, vocabulary) at the supervised tokens of a batch."""
    wanted = batch.supervised.to(model.device)
    with _last_layer_only_at(wanted, model):
        logits: Tensor = model(
            input_ids=batch.input_ids.to(model.device),
            position_ids=batch.position_ids.to(model.device),
            trees=trees,
            logits_to_keep=len(wanted),
            use_cache=False,
        ).logits
    return logits[0]


@contextmanager
def _last_layer_only_at(wanted: Tensor, model: PreTrainedModel) -> Iterator[None]:
    layer = last_layer(model)
    layer.forward = partial(_forward_wanted, layer.forward, wanted)
    try:
        yield
    finally:
        del layer.forward


def last_layer(model: PreTrainedModel) -> nn.Module:
    """The last of the `layers_of` a model."""
    return layers_of(model)[-1]


def layers_of(model: PreTrainedModel) -> nn.ModuleList:
    """The layers that a model is made of.

    Raises:
        ValueError: they are in no list.
    """
    count = model.config.get_text_config().num_hidden_layers
    for module in model.modules():
        if isinstance(module, nn.ModuleList) and len(module) == count:
            return module
    raise ValueError(f"it has no list of its {count} layers")


def _forward_wanted(
    forward: Callable[..., Any], wanted: Tensor, *args: Any, trees: PackedTrees, **kwargs: Any
) -> Any:
    """What the layer's `forward` gives for the wanted tokens, as the last; 0 for the others."""
    key, value = _keys_and_values(forward, *args, **kwargs)
    tokens = key.shape[2]
    narrow = partial(_narrow, wanted, tokens)
    narrowed = _WantedTokens(trees, key, value)
    output = forward(
        *narrow(args), **{name: narrow(each) for name, each in kwargs.items()}, trees=narrowed
    )
    return _widen(tokens, output)


def _keys_and_values(
    forward: Callable[..., Any], *args: Any, **kwargs: Any
) -> tuple[Tensor, Tensor]:
    """Run a layer as far as its attention."""
    try:
        forward(*args, **kwargs, trees=_UpToAttention())
    except _AttentionReached as reached:
        return reached.key, reached.value
    raise ValueError("the last layer has no attention over trees")


class _AttentionReached(Exception):  # noqa: N818 - no error: the way out of a layer
    """Carries the keys and values that attention was asked for."""

    def __init__(self, key: Tensor, value: Tensor) -> None:
        super().__init__()
        self.key, self.value = key, value


class _UpToAttention:
    """Trees over which a layer runs only as far as its attention."""

    def attend(
        self, layer: int, query: Tensor, key: Tensor, value: Tensor, scaling: float
    ) -> Tensor:
        """See `Trees.attend`."""
        raise _AttentionReached(key, value)


@dataclass(frozen=True)
class _WantedTokens:
    """Some tokens of packed trees, which attend to the keys and values of all."""

    trees: PackedTrees
    key: Tensor
    value: Tensor

    def attend(
        self, layer: int, query: Tensor, key: Tensor, value: Tensor, scaling: float
    ) -> Tensor:
        """See `Trees.attend`: here T is the number of wanted tokens."""
        return self.trees.attend_from_wanted(layer, query, self.key, self.value, scaling)


def _narrow(wanted: Tensor, tokens: int, value: Any) -> Any:
    """Take the wanted tokens of whatever has a row for each of all `tokens`."""
    if isinstance(value, tuple):
        return tuple(_narrow(wanted, tokens, item) for item in value)
    has_rows = isinstance(value, Tensor) and value.ndim > 1 and value.shape[:2] == (1, tokens)
    # Unlike that of indexing, its gradient needs no sorting.
    return value.index_select(1, wanted) if has_rows else value


def _widen(tokens: int, output: Any) -> Any:
    """Make a layer's output for the wanted tokens that of the last ones of so many."""
    if isinstance(output, tuple):
        return (_widen(tokens, output[0]), *output[1:])
    return pad(output, (0, 0, tokens - output.shape[1], 0))
