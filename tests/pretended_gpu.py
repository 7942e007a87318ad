"""Training and answering on a pretended GPU: `python -m tests.pretended_gpu SETTINGS OUT`.

The GPU's tensors say that they lie on another device, but their numbers are on the CPU. An
operation that mixes both devices fails as on a real GPU, so tests without a GPU find each tensor
that lies on the wrong device. PyTorch makes such a device for a whole process, hence the command.
"""

import json
import logging
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
from loraqa.finetuning import finetune
from loraqa.model.runner import Runner, TreeRunner, Use
from loraqa.reader import Reader
from loraqa.speed.trial import fastest
from loraqa.train.run import RunDirectory
from loraqa.train.settings import RunSettings, load_settings
from tests.speed.gpu import flash_by_hand
from tests.speed.gpu.graph_by_hand import Recorder
from tests.train.conftest import PASSAGES

STRATEGIES = ("greedy", "top-p:0.9", "beam:3", "span")
_setup_privateuseone_for_python_backend("gpu")
torch._C._set_only_lift_cpu_tensors(True)
GPU = torch.device("gpu:0")
_INDEXING = ("index", "index_put", "index_put_", "_index_put_impl_")


class OnGpu(Tensor):
    """A tensor on the pretended GPU; `numbers` is the same tensor on the CPU."""

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
        """Return the storage on the CPU, by which safetensors finds tensors that share memory."""
        return self.numbers.untyped_storage()

    @classmethod
    def __torch_dispatch__(cls, operation: Any, _types: Any, args: Any = (), kwargs: Any = None):
        return compute(operation, args, kwargs or {})


class Gpu(TorchDispatchMode):
    """Lets operations make tensors on the pretended GPU."""

    def __torch_dispatch__(self, operation: Any, _types: Any, args: Any = (), kwargs: Any = None):
        return compute(operation, args, kwargs or {})


def compute(operation: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """Run an operation on the CPU; its tensors lie on one device, and so does the result."""
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
    # A tensor that the operation changed in place stays the same object.
    known = {id(each.numbers): each for each in tensors if isinstance(each, OnGpu)}
    return tree_map(
        lambda each: known.get(id(each), OnGpu(each)) if isinstance(each, Tensor) else each, result
    )


def numbers_of(value: Any) -> Any:
    return value.numbers if isinstance(value, OnGpu) else value


def check_one_device(name: str, args: Any, tensors: list[Tensor]) -> None:
    """Raise `RuntimeError` for tensors on both devices, except indices and single numbers."""
    if name in _INDEXING and isinstance(args[0], OnGpu):
        tensors = [each for each in tree_iter((args[0], args[2:])) if isinstance(each, Tensor)]
    devices = {isinstance(each, OnGpu) for each in tensors if each.dim()}
    if len(devices) > 1:
        raise RuntimeError(f"{name}: some tensors are on the GPU, and some on the CPU")


def results(run: Path, settings: RunSettings, answering: Path) -> dict[str, Any]:
    """Return the losses of a training, answers of all kinds, and the accelerations of both.

    The answers are by the adapter of the run `answering`. Both devices take the same run, because
    rounding in training may change answers.
    """
    used: list[tuple[str, ...]] = []

    def remember(*args: Any) -> tuple[Runner, tuple[str, ...]]:
        runner, names = fastest(*args)
        used.append(names)
        return runner, names

    with (
        patch("loraqa.finetuning.ready.fastest", remember),
        patch("loraqa.reader.fastest", remember),
    ):
        finetune(settings, run)
        reader = Reader.load(answering, device=settings.model.device)
    answers = {
        name: [first.text for first, *_ in reader.read(PASSAGES, parse_strategy(name))]
        for name in STRATEGIES
    }
    metrics = RunDirectory(run).metrics()
    losses = [record["loss"] for record in metrics if record["kind"] == "train"]
    training, answering_by = used
    return {
        "losses": losses,
        "answers": answers,
        "accelerations": {"training": training, "answering": answering_by},
    }


def computes_trees(runner: Runner, _uses: frozenset[Use]) -> bool:
    """In place of `trees.applies`, which asks for a real GPU."""
    return isinstance(runner, TreeRunner)


def main() -> None:
    """Train and answer on the CPU and on the pretended GPU; print both results as JSON."""
    # An acceleration that does not work says why on standard error.
    logging.basicConfig(level=logging.INFO)
    settings, out = load_settings([Path(sys.argv[1])]), Path(sys.argv[2])
    here = out / "cpu"
    both = [results(here, settings, answering=here)]
    there = settings.model.model_copy(update={"device": str(GPU)})
    with (
        # Triton and CUDA do not know the pretended GPU.
        patch("loraqa.speed.gpu.trees.applies", computes_trees),
        patch("loraqa.speed.gpu.trees._attend", flash_by_hand.attend),
        patch("loraqa.speed.gpu.graphs.Recorder", lambda: Recorder(GPU)),
        Gpu(),
    ):
        settings = settings.model_copy(update={"model": there})
        both.append(results(out / "gpu", settings, answering=here))
    print(json.dumps(both))


if __name__ == "__main__":
    main()
