"""Attention over packed trees on a GPU, by the Triton kernels of `kernels.py`."""

from dataclasses import replace

import torch
from torch import Tensor

from loraqa.model.runner import Runner, TreeRunner, Use
from loraqa.prompt.batch import TreeBatch
from loraqa.speed.gpu.visibility import Queries, queries_of, token_sight
from loraqa.speed.trial import check_trees


def applies(runner: Runner, _uses: frozenset[Use]) -> bool:
    """Return whether the runner computes trees on a GPU."""
    return isinstance(runner, TreeRunner) and runner.model.device.type == "cuda"


def wrap(runner: TreeRunner) -> Runner:
    """Compare the kernels with plain attention, then let the runner attend by them."""
    check_trees(triton_tree_attention, runner.model.device, runner.model.dtype)
    return replace(runner, make_tree_attention=triton_tree_attention)


class TritonTreeAttention:
    """`PackedTreeAttention` by kernels that take all trees at once.

    Args:
        sight: the result of `token_sight`, on the device.
    """

    def __init__(self, sight: Tensor) -> None:
        every = torch.arange(sight.shape[1], dtype=torch.int32, device=sight.device)
        self._queries = queries_of(sight, every)

    def attend(
        self, layer: int, query: Tensor, key: Tensor, value: Tensor, scaling: float
    ) -> Tensor:
        """See `TreeAttention.attend`."""
        return _attend(query, key, value, self._queries, scaling)


def triton_tree_attention(batch: TreeBatch, device: torch.device) -> TritonTreeAttention:
    """Make `TritonTreeAttention` of a batch on a device."""
    return TritonTreeAttention(token_sight(batch.spans, batch.input_ids.shape[1]).to(device))


def _attend(query: Tensor, key: Tensor, value: Tensor, queries: Queries, scaling: float) -> Tensor:
    # Triton comes with PyTorch for a GPU, and not with PyTorch for a CPU.
    from loraqa.speed.gpu.kernels import attend

    return attend(query, key, value, queries, scaling)
