"""The trained weights as one vector: all matrices of an adapter, one after another.

Each weight is a view of its part of the vector, and so is its gradient. So optimizer and clipping
work on one tensor instead of a hundred, which saves launching kernels on a GPU.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn


class FlatAdapter:
    """Turn the weights of a model that are not frozen into parts of one vector.

    A weight that several modules share, such as a tied embedding, is one part, and stays shared.

    Attributes:
        weights: the weights by name, in the model's order.
        vector: (n,) all weights.
        gradient: (n,) the gradient of the vector. Its memory stays the same.
        gradient_and_beside: (n + 2,) the gradient, and room for two numbers that processes exchange
            with it.
    """

    def __init__(self, model: nn.Module) -> None:
        self.weights = {name: p for name, p in model.named_parameters() if p.requires_grad}
        self.vector = nn.Parameter(torch.cat([p.detach().flatten() for p in self.weights.values()]))
        self.gradient_and_beside = self.vector.new_zeros(len(self.vector) + 2, requires_grad=False)
        self.gradient = self.gradient_and_beside[:-2]
        self.vector.grad = self.gradient
        gradients, replaced = self.split(self.gradient), {}
        for name, part in self.split(self.vector.detach()).items():
            before, self.weights[name] = self.weights[name], nn.Parameter(part)
            self.weights[name].grad = gradients[name]
            replaced[before] = self.weights[name]
        for name, weight in list(model.named_parameters(remove_duplicate=False)):
            if weight in replaced:
                owner, _, attribute = name.rpartition(".")
                setattr(model.get_submodule(owner), attribute, replaced[weight])

    @property
    def beside_gradient(self) -> tuple[Tensor, Tensor]:
        """The two numbers (), (), as views."""
        first, second = self.gradient_and_beside[-2:]
        return first, second

    def split(self, vector: Tensor) -> dict[str, Tensor]:
        """Return each weight's part of a vector (n,), as a view by name."""
        parts = vector.split([weight.numel() for weight in self.weights.values()])
        return {
            name: part.view(weight.shape)
            for (name, weight), part in zip(self.weights.items(), parts, strict=True)
        }

    def join(self, parts: Mapping[str, Tensor]) -> Tensor:
        """Join parts to a vector (n,), the reverse of `split`."""
        return torch.cat([parts[name].flatten() for name in self.weights])
