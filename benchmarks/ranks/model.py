"""What an optimizer step costs when R processes ("ranks") share it.

    step = fixed + longest + exchange

- `fixed`: what a step takes whatever its tokens, such as the optimizer.
- `longest`: the time of the last rank that has computed its trees. A rank with T tokens takes
  T · per_token · x, where x is drawn anew for each rank and step: ln x is normal with standard
  deviation `spread`, and the mean of x is 1. A rank with a large x is a straggler.
- `exchange`: the all-reduce of the adapter's gradient, of n bytes. A message of b bytes takes
  latency + b / bandwidth. In a ring every rank sends 2 (R - 1) messages of n / R bytes. In a tree
  n bytes go up and down in pieces, one after the other, over log2 R levels each way. Libraries take
  the faster of the two.

Every rank waits for the longest, and a ring or tree that has begun waits for nobody. So a step
takes the sum, and in the sum each part is the expected time.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.integrate import simpson
from scipy.special import log_ndtr

# Beyond so many standard deviations nothing is drawn, and so fine is the integral in between.
_REACH, _POINTS = 9.0, 4001


@dataclass(frozen=True)
class Network:
    """The connections between ranks.

    Attributes:
        latency: seconds of an empty message.
        bandwidth: bytes a second that each rank sends, and receives at the same time.
    """

    latency: float
    bandwidth: float

    def ring(self, size: float, ranks: int) -> float:
        """Return the seconds of an all-reduce of `size` bytes in a ring."""
        return 2 * (ranks - 1) * (self.latency + size / ranks / self.bandwidth)

    def tree(self, size: float, ranks: int) -> float:
        """Return the seconds of an all-reduce of `size` bytes in a tree."""
        if ranks == 1:
            return 0.0
        return 2 * math.ceil(math.log2(ranks)) * self.latency + 2 * size / self.bandwidth

    def all_reduce(self, size: float, ranks: int) -> float:
        """Return the seconds of the faster of the two."""
        return min(self.ring(size, ranks), self.tree(size, ranks))


@dataclass(frozen=True)
class Processor:
    """What each rank computes on.

    Attributes:
        fixed: seconds of a step besides those of its tokens.
        per_token: seconds a token, forward and backward.
        spread: the standard deviation of ln x, see above.
    """

    fixed: float
    per_token: float
    spread: float


@dataclass(frozen=True)
class StepCost:
    """The expected seconds of a step, by where they go.

    Attributes:
        work: what the step would take if all ranks had the same tokens, and none were slow.
        imbalance: waiting for the rank with the most tokens.
        stragglers: waiting for ranks that are slow in this step.
        exchange: the all-reduce.
    """

    work: float
    imbalance: float
    stragglers: float
    exchange: float

    @property
    def total(self) -> float:
        """The seconds of the step."""
        return self.work + self.imbalance + self.stragglers + self.exchange

    @property
    def efficiency(self) -> float:
        """The share of the step that is work."""
        return self.work / self.total


def cost_of_step(
    tokens: Sequence[float], size: float, processor: Processor, network: Network
) -> StepCost:
    """Return what a step costs.

    Args:
        tokens: the tokens of each rank.
        size: bytes of the gradient.
        processor: what each rank computes on.
        network: what connects them.
    """
    mean, most = sum(tokens) / len(tokens), max(tokens)
    # Not less than the most, but for the rounding of an integral.
    longest = max(most, expected_longest(tokens, processor.spread))
    return StepCost(
        work=processor.fixed + processor.per_token * mean,
        imbalance=processor.per_token * (most - mean),
        stragglers=processor.per_token * (longest - most),
        exchange=network.all_reduce(size, len(tokens)),
    )


def expected_longest(loads: Sequence[float], spread: float) -> float:
    """Return the expected largest of load · x over all ranks; see the module.

    It is the integral over t of 1 - P(all are below t).
    """
    busy = np.asarray([load for load in loads if load > 0], dtype=np.float64)
    if not spread or not len(busy):
        return float(busy.max(initial=0.0))
    # By u = ln t: the integral up to the first u, where P is 0, is its t.
    centres = np.log(busy) - spread**2 / 2
    u = np.linspace(centres.max() - _REACH * spread, centres.max() + _REACH * spread, _POINTS)
    above = -np.expm1(_log_all_below(u, centres, spread))
    return float(np.exp(u[0]) + simpson(above * np.exp(u), x=u))


def _log_all_below(
    u: NDArray[np.float64], centres: NDArray[np.float64], spread: float
) -> NDArray[np.float64]:
    """Return ln P(all ln(load · x) are below u), for each u."""
    total = np.zeros_like(u)
    for centre, count in zip(*np.unique(centres, return_counts=True), strict=True):
        total += count * log_ndtr((u - centre) / spread)
    return total


def fit_processor(tokens: Sequence[float], seconds: Sequence[Sequence[float]]) -> Processor:
    """Fit a processor to the times of steps of one rank.

    Args:
        tokens: the tokens of each kind of step; at least two kinds.
        seconds: the measured times of each kind.
    """
    medians = [float(np.median(times)) for times in seconds]
    # Relative errors count, and no part of a step takes less than nothing.
    weights = 1 / np.asarray(medians)
    per_token, fixed = np.polyfit(tokens, medians, 1, w=weights)
    if fixed < 0:
        relative = np.asarray(tokens) * weights
        fixed, per_token = 0.0, relative.sum() / (relative**2).sum()
    logs = [np.log(t / m) for times, m in zip(seconds, medians, strict=True) for t in times]
    return Processor(float(fixed), float(per_token), float(np.std(logs)))


def fit_network(sizes: Sequence[float], seconds: Sequence[float], ranks: int) -> Network:
    """Fit a network to measured all-reduces in a ring of `ranks`, by relative errors."""
    weights = 1 / np.asarray(seconds)
    slope, start = np.polyfit(sizes, seconds, 1, w=weights)
    # The smallest all-reduce is all latency, if the line starts below it.
    start = start if start > 0 else min(seconds)
    rounds = 2 * (ranks - 1)
    return Network(latency=float(start) / rounds, bandwidth=rounds / ranks / float(slope))
