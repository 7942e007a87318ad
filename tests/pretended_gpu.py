"""Training and answering on a GPU that is none: `python -m tests.pretended_gpu SETTINGS OUT`.

Its tensors say that they lie on another device; their numbers are on the CPU, and an operation that
would mix the two fails as on a real one. So whatever is left on the wrong device is found where
there is no GPU. The device is made for a whole process, hence the command.
"""

import json
import sys
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter, tree_map
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

from loraqa.answer.strategies import parse_strategy
from loraqa.finetune import finetune
from loraqa.model import choose
from loraqa.model.runner import KernelRunner
from loraqa.reader import Reader
from loraqa.train.run import RunDirectory
from loraqa.train.settings import RunSettings, load_settings
from tests.speed.gpu import flash_by_hand
from tests.train.conftest import PASSAGES

STRATEGIES = ("greedy", "top-p:0.9", "beam:3", "span")
_setup_privateuseone_for_python_backend("gpu")
torch._C._set_only_lift_cpu_tensors(True)
GPU = torch.device("gpu:0")
_INDEXING = ("index", "index_put", "index_put_", "_index_put_impl_")


class OnGpu(Tensor):
    """A tensor with its numbers in another, on the CPU."""

    numbers: Tensor

    @staticmethod
    def __new__(cls, numbers: Tensor) -> "OnGpu":
        shape, strides, dtype = numbers.shape, numbers.stride(), numbers.dtype
        return Tensor._make_wrapper_subclass(cls, shape, strides, dtype=dtype, device=GPU)

    def __init__(self, numbers: Tensor) -> None:
        self.numbers = numbers

    def tolist(self) -> Any:
        return self.numbers.tolist()

    def untyped_storage(self) -> Any:
        """Safetensors looks at it, and copies to the CPU whatever lies elsewhere."""
        return self.numbers.untyped_storage()

    @classmethod
    def __torch_dispatch__(cls, operation: Any, _types: Any, args: Any = (), kwargs: Any = None):
        return compute(operation, args, kwargs or {})


class Gpu(TorchDispatchMode):
    """Within it, the device can be asked for."""

    def __torch_dispatch__(self, operation: Any, _types: Any, args: Any = (), kwargs: Any = None):
        return compute(operation, args, kwargs or {})


def compute(operation: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """On the CPU, if all tensors lie on one device; the result goes where theirs do."""
    name = operation.overloadpacket.__name__
    tensors = [each for each in tree_iter((args, kwargs)) if isinstance(each, Tensor)]
    wanted = kwargs.get("device")
    here = any(isinstance(each, OnGpu) for each in tensors)
    if name == "copy_":
        here = isinstance(args[0], OnGpu)
    else:
        check_one_device(name, args, tensors)
    if wanted is not None:
        here = torch.device(wanted).type == GPU.type
        kwargs = kwargs | {"device": torch.device("cpu")}
    result = operation(*tree_map(numbers_of, args), **tree_map(numbers_of, kwargs))
    if not here:
        return result
    # What an operation changes in place stays the same tensor.
    known = {id(each.numbers): each for each in tensors if isinstance(each, OnGpu)}
    return tree_map(
        lambda each: known.get(id(each), OnGpu(each)) if isinstance(each, Tensor) else each, result
    )


def numbers_of(value: Any) -> Any:
    return value.numbers if isinstance(value, OnGpu) else value


def check_one_device(name: str, args: Any, tensors: list[Tensor]) -> None:
    """Indices may lie on the CPU, and single numbers."""
    if name in _INDEXING and isinstance(args[0], OnGpu):
        tensors = [each for each in tree_iter((args[0], args[2:])) if isinstance(each, Tensor)]
    devices = {isinstance(each, OnGpu) for each in tensors if each.dim()}
    if len(devices) > 1:
        raise RuntimeError(f"{name}: some tensors are on the GPU, and some on the CPU")


def results(run: Path, settings: RunSettings, answering: Path) -> dict[str, Any]:
    """Losses of a training, and all kinds of answers by the adapter of another run.

    That is the same one on both devices, because rounding in training may change the answers.
    """
    finetune(settings, run)
    metrics = RunDirectory(run).metrics()
    reader = Reader.load(answering, device=settings.model.device)
    answers = {
        name: [first.text for first, *_ in reader.read(PASSAGES, parse_strategy(name))]
        for name in STRATEGIES
    }
    losses = [record["loss"] for record in metrics if record["kind"] == "train"]
    return {"runner": type(reader.runner).__name__, "losses": losses, "answers": answers}


def main() -> None:
    """Do it on the CPU and there; both results go to standard output as JSON."""
    settings, out = load_settings([Path(sys.argv[1])]), Path(sys.argv[2])
    there = settings.model.model_copy(update={"device": str(GPU)})
    here = out / "cpu"
    both = [results(here, settings, answering=here)]
    with (
        # In place of kernels, which know but a few devices.
        patch("loraqa.speed.gpu.trees._attend", flash_by_hand.attend),
        patch.dict(choose._OVER_TREES, {GPU.type: (KernelRunner,)}),
        Gpu(),
    ):
        settings = settings.model_copy(update={"model": there})
        both.append(results(out / "gpu", settings, answering=here))
    print(json.dumps(both))


if __name__ == "__main__":
    main()
