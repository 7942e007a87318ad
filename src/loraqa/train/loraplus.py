"""LoRA+ (Hayou et al., 2024, arXiv:2402.12354): every B learns faster than its A."""

from typing import Any

import torch
from torch.optim import Optimizer

from loraqa.lora.flat import FlatAdapter


def lengthen_steps_of_b(optimizer: Optimizer, adapter: FlatAdapter, ratio: float) -> None:
    """Let each step of the optimizer of `adapter.vector` move every B `ratio` times as far.

    AdamW's step, weight decay included, is proportional to the learning rate. So this is AdamW with
    a learning rate for B that is `ratio` times that for A.
    """
    vector = adapter.vector.detach()
    lengths = {
        name: torch.full_like(weight, ratio if name.endswith("lora_B") else 1.0)
        for name, weight in adapter.split(vector).items()
    }
    length = adapter.join(lengths)
    before = torch.empty_like(vector)

    def remember(*_: Any) -> None:
        before.copy_(vector)

    def lengthen(*_: Any) -> None:
        vector.copy_(before.lerp(vector, length))

    optimizer.register_step_pre_hook(remember)
    optimizer.register_step_post_hook(lengthen)
