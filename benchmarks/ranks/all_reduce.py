"""Time all-reduces of vectors on the CPU.

`torchrun --nproc-per-node 2 -m benchmarks.ranks.all_reduce` starts two ranks, of which the first
prints one JSON object: bytes to seconds, the median of all repetitions.
"""

import json
import time
from statistics import median

import torch
import torch.distributed as dist

# The adapter of rank 16 on all linear layers of GPT-2 has 9.4 MB.
SIZES = [2**power for power in range(6, 26, 2)]
_REPETITIONS = 30


def main() -> None:
    """Time every size."""
    dist.init_process_group("gloo")
    seconds = {size: _median_seconds(size) for size in SIZES}
    if dist.get_rank() == 0:
        print(json.dumps(seconds))
    dist.destroy_process_group()


def _median_seconds(size: int) -> float:
    vector = torch.zeros(size // 4)
    return median([_seconds(vector) for _ in range(1 + _REPETITIONS)][1:])


def _seconds(vector: torch.Tensor) -> float:
    # All begin together, so that nobody's time includes waiting for another's start.
    dist.barrier()
    start = time.perf_counter()
    dist.all_reduce(vector)
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
