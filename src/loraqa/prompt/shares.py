"""Share the trees of a step among processes, so that all have about as much to compute.

The longest goes first, always to the process with the least (longest processing time first, Graham
1969). Then the process with the most gives a tree to the one with the least, or swaps two with it,
as long as that helps.
"""

import heapq
from collections.abc import Iterator, Sequence
from operator import itemgetter

# When no process has more than this above the mean, they are even enough.
_EVEN = 0.01


def shares(costs: Sequence[float], ranks: int) -> list[list[int]]:
    """Share items among `ranks` processes, as a pure function of its arguments.

    Args:
        costs: the cost of each item, from 0 on.
        ranks: the number of processes, from 1 on.

    Returns:
        The indices of each process's items, in increasing order. A process may have none.
    """
    shared, loads = _longest_first(costs, ranks)
    _even_out(costs, shared, loads)
    return [sorted(items) for items in shared]


def _longest_first(costs: Sequence[float], ranks: int) -> tuple[list[list[int]], list[float]]:
    """Return the items and the load of each process that takes the next one when it has least."""
    shared: list[list[int]] = [[] for _ in range(ranks)]
    by_load = [(0.0, rank) for rank in range(ranks)]
    for item in sorted(range(len(costs)), key=lambda item: -costs[item]):
        load, rank = by_load[0]
        shared[rank].append(item)
        heapq.heapreplace(by_load, (load + costs[item], rank))
    return shared, [load for load, _ in sorted(by_load, key=itemgetter(1))]


def _even_out(costs: Sequence[float], shared: list[list[int]], loads: list[float]) -> None:
    """Exchange items, in place, until all have about as much or nothing helps any more.

    Each exchange leaves both processes with less than the most, so this ends.
    """
    mean = sum(loads) / len(loads)
    while max(loads) > (1 + _EVEN) * mean:
        most, least = loads.index(max(loads)), loads.index(min(loads))
        gap = loads[most] - loads[least]
        moves = _moves(costs, shared[most], shared[least])
        helping = [move for move in moves if 0 < move[0] < gap]
        if not helping:
            return
        moved, given, taken = min(helping, key=lambda move: abs(move[0] - gap / 2))
        loads[most], loads[least] = loads[most] - moved, loads[least] + moved
        shared[most] = [*(item for item in shared[most] if item != given), *taken]
        shared[least] = [*(item for item in shared[least] if item not in taken), given]


def _moves(
    costs: Sequence[float], most: list[int], least: list[int]
) -> Iterator[tuple[float, int, list[int]]]:
    """Yield what can be exchanged: the cost moved, the item given, and the item taken, if any."""
    for given in most:
        yield costs[given], given, []
        for taken in least:
            yield costs[given] - costs[taken], given, [taken]
