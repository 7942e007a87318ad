"""What is trained, as one vector: all matrices of an adapter side by side.

Each is a view of its part, and so are their gradients. So optimizer and clipping have one tensor to
look at instead of a hundred, each of which would take a GPU a launch.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn


class FlatAdapter:
    """The weights of a model that are not frozen, which become parts of a vector.

    Attributes:
        weights: these weights by name, in the model's order.
        vector: (their number,) all of them.
        gradient: of the vector, as long; it is there from the start, and stays where it is.
    """

    def __init__(self, model: nn.Module) -> None:
        self.weights = {name: p for name, p in model.named_parameters() if p.requires_grad}
        self.vector = nn.Parameter(torch.cat([p.detach().flatten() for p in self.weights.values()]))
        self.gradient = torch.zeros_like(self.vector)
        self.vector.grad = self.gradient
        gradients = self.split(self.gradient)
        for name, part in self.split(self.vector.detach()).items():
            owner, _, attribute = name.rpartition(".")
            self.weights[name] = nn.Parameter(part)
            self.weights[name].grad = gradients[name]
            setattr(model.get_submodule(owner), attribute, self.weights[name])

    def split(self, vector: Tensor) -> dict[str, Tensor]:
        """Each weight's part of a vector as long as this one, as a view by name."""
        parts = vector.split([weight.numel() for weight in self.weights.values()])
        return {
            name: part.view(weight.shape)
            for (name, weight), part in zip(self.weights.items(), parts, strict=True)
        }

    def join(self, parts: Mapping[str, Tensor]) -> Tensor:
        """The reverse of `split`."""
        return torch.cat([parts[name].flatten() for name in self.weights])
