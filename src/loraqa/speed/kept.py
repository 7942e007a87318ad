"""Keep the keys and values of trunks on disk, between epochs and runs.

With an activated LoRA they are those of the frozen base, whatever is learned. An entry is named
after the base, how it is computed, and the tokens, and is checked before it is used (see
`loraqa.cache`). When the room is used up, what is there stays: an epoch visits every trunk once, so
the one used last is needed last.
"""

import hashlib
import logging
import os
import shutil
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from transformers import PreTrainedModel

from loraqa.cache import find_kept, keep
from loraqa.files import cache_folder, make_folder, writing_tensors
from loraqa.model.runner import Runner, TreeRunner
from loraqa.prompt.tree import TokenIds
from loraqa.speed.branches import BranchGradients, Trunks

logger = logging.getLogger("loraqa")

_KIND = "trunks"
_ENDING = ".safetensors"
_STATES = "states"
# The key of a file's header that says whose states they are.
_OF = "of"
# Tokens of the trunk whose states show how this machine computes.
_TRIED = 64


def keep_trunks(runner: Runner, gibibytes: float, sharers: int = 1) -> Runner:
    """Let a runner that trains on branches alone keep the trunks; return another one as it is.

    Args:
        runner: the runner, before the first step.
        gibibytes: how much disk all kept trunks may take; at most half of what is free is used.
        sharers: how many processes share this room.
    """
    if not isinstance(runner, TreeRunner) or not gibibytes:
        return runner
    if not isinstance(runner.make_gradients, BranchGradients):
        return runner
    logger.info(
        f"The keys and values of contexts are kept in {cache_folder(_KIND)}, up to "
        f"{gibibytes:g} GiB (speed.kept_trunks)."
    )
    compute = runner.make_gradients.trunks
    room = int(gibibytes * 2**30)
    trunks = KeptTrunks(compute, _identity(runner.model, compute), room, sharers)
    return replace(runner, make_gradients=BranchGradients(trunks))


class KeptTrunks:
    """`Trunks` that computes only those that are not on disk.

    Another thread writes, because a disk takes its time to make sure of what it is given.

    Args:
        compute: computes trunks.
        identity: a name of what decides their states besides their tokens.
        room: bytes that all kept trunks may take.
        sharers: how many processes share what is left of it.
    """

    def __init__(self, compute: Trunks, identity: str, room: int, sharers: int = 1) -> None:
        self._compute, self._identity = compute, identity
        self._left = _make_room(identity, room) // sharers
        self._full = False
        self._writer = ThreadPoolExecutor(max_workers=1, thread_name_prefix="trunks")
        self._writing: list[Future[Path | None]] = []

    def __call__(self, trunks: Sequence[TokenIds]) -> list[Tensor]:
        """See `Trunks`."""
        self.finish()
        found = [self._read(trunk) for trunk in trunks]
        missing = [trunk for trunk, states in zip(trunks, found, strict=True) if states is None]
        computed = self._compute(missing) if missing else []
        for trunk, states in zip(missing, computed, strict=True):
            self._keep(trunk, states)
        rest = iter(computed)
        return [next(rest) if states is None else states for states in found]

    def finish(self) -> None:
        """Wait until everything is written."""
        for writing in self._writing:
            writing.result()
        self._writing.clear()

    def _read(self, trunk: TokenIds) -> Tensor | None:
        kind, key = self._place(trunk)
        kept = find_kept(kind, key, _ENDING)
        if kept is None:
            return None
        # Another process may remove it now, to make room.
        with suppress(OSError), safe_open(kept, "pt") as file:
            # A file may have been given another name.
            if file.metadata() == {_OF: f"{self._identity} {key}"}:
                states: Tensor = file.get_tensor(_STATES)
                return states
        return None

    def _keep(self, trunk: TokenIds, states: Tensor) -> None:
        if states.nbytes > self._left:
            self._tell_full()
            return
        self._left -= states.nbytes
        kind, key = self._place(trunk)
        write = partial(_write, states.contiguous(), f"{self._identity} {key}")
        self._writing.append(self._writer.submit(keep, kind, key, _ENDING, write))

    def _place(self, trunk: TokenIds) -> tuple[str, str]:
        """Return the folder and the key of a trunk; small folders are searched fast."""
        key = hashlib.sha256(np.asarray(trunk, dtype="<i4").tobytes()).hexdigest()
        return f"{_KIND}/{self._identity}/{key[:2]}", key

    def _tell_full(self) -> None:
        if not self._full:
            self._full = True
            logger.info(
                "There is no more room for the keys and values of contexts (speed.kept_trunks); "
                "those of the other contexts are computed in every epoch."
            )


def _write(states: Tensor, of: str, path: Path) -> None:
    with writing_tensors(path):
        save_file({_STATES: states}, path, {_OF: of})


def _make_room(identity: str, room: int) -> int:
    """Return how many more bytes may be kept.

    If half of the room is used, the trunks of other bases make way, those used longest ago first.
    """
    folder = cache_folder(_KIND)
    own = folder / identity
    with suppress(OSError):
        make_folder(own)
        own.touch()
        others = sorted((path for path in folder.iterdir() if path != own), key=_last_used)
        while others and _size(folder) > room / 2:
            # Another process may remove it at the same time.
            shutil.rmtree(others.pop(0), ignore_errors=True)
        return min(room - _size(folder), shutil.disk_usage(folder).free // 2)
    return 0


def _last_used(path: Path) -> float:
    """Return when a file or folder was changed (seconds); 0 if another process has removed it."""
    with suppress(FileNotFoundError):
        return path.stat().st_mtime
    return 0


def _size(folder: Path) -> int:
    """Return the bytes of all trunks in a folder, while other processes may remove some."""
    size = 0
    for parent, _, names in os.walk(folder):
        for name in names:
            if name.endswith(_ENDING):
                with suppress(FileNotFoundError):
                    size += Path(parent, name).stat().st_size
    return size


def _identity(model: PreTrainedModel, compute: Trunks) -> str:
    """Return a SHA-256 (hex) of the frozen weights, and of what this machine computes with them.

    Dtype, kernels, threads and versions show in the states of a trunk.
    """
    digest = hashlib.sha256(model.config.to_json_string().encode())
    ids = np.random.default_rng(0).integers(model.config.get_text_config().vocab_size, size=_TRIED)
    frozen = {name: each for name, each in model.named_parameters() if not each.requires_grad}
    for name, tensor in (*frozen.items(), (_STATES, *compute([ids.astype(np.int32)]))):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()
