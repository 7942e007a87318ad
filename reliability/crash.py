"""The crash study: kills, power cuts, failing disks and damaged files.

A tiny training, an evaluation and exports are interrupted or find their files damaged. They hold if
the same command, or `train --resume`, then ends with the bits of an undisturbed one. A damaged file
may also be refused in one sentence, if the work goes on after the file was restored. No temporary
file may stay.
"""

import errno
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from reliability.damages import damages
from reliability.disk import Disk, Tree, read_tree
from reliability.forks import Ended, run
from reliability.trials import (
    Fault,
    Kill,
    State,
    Trial,
    Verdict,
    attempt,
    dying,
    new_place,
    stopped,
)
from reliability.watching import GO_ON, Answer, Call
from reliability.works import (
    FAMILIES,
    RUN,
    Work,
    difference,
    evaluation,
    export,
    result_of,
    share_with_forks,
    training,
    write_inputs,
)

_FORMS = ("peft", "merged")


@dataclass(frozen=True)
class Size:
    """How many trials of each kind.

    Attributes:
        kills: kills of trainings at seeded instants; a fifth as many of each other work.
        states: states before a call, of each work and kind of crash; None takes all.
        faults: failing calls of each kind.
        damages: damaged files.
    """

    kills: int
    states: int | None
    faults: int
    damages: int


FULL = Size(kills=200, states=None, faults=60, damages=1500)
QUICK = Size(kills=20, states=1, faults=2, damages=20)


class Undisturbed:
    """Works that nothing disturbs: what they result in, how long they take, and their files."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.results: dict[str, dict[str, Any]] = {}
        self.seconds: dict[str, float] = {}
        self.trees: dict[str, Tree] = {}

    def add(self, work: Work) -> Tree:
        """Do a work, and return the files in its place at the end.

        Raises:
            SystemExit: the work fails, or does not give the same bits twice.
        """
        with new_place(self.folder, work.start) as place:
            ended = run(work.begin, place)
            self._check(work, ended, result_of(place))
            self.seconds[work.name] = ended.seconds
            tree = {k: v for k, v in read_tree(place).items() if not k.startswith("tmp")}
        return self.trees.setdefault(work.name, tree)

    def _check(self, work: Work, ended: Ended, result: Mapping[str, Any]) -> None:
        if ended.status != 0:
            raise SystemExit(f"{work.name} fails, undisturbed:\n{ended.said}")
        if found := difference(self.results.setdefault(work.name, dict(result)), result):
            raise SystemExit(f"{work.name} is not the same twice: the second {found}")


def study(
    folder: Path,
    size: Size,
    seed: int,
    jobs: int,
    report: Callable[[Trial, Verdict], None],
    only: str = "",
    families: Sequence[str] = FAMILIES,
) -> None:
    """Try everything, or the groups whose name contains `only`, and report each verdict.

    The counts of `size` are shared among the families.
    """
    inputs = folder / "inputs"
    run(partial(write_inputs, inputs), folder)
    share_with_forks(inputs, folder)
    undisturbed = Undisturbed(folder)
    counts = replace(
        size,
        kills=size.kills // len(families),
        faults=size.faults // len(families),
        damages=size.damages // len(families),
    )
    trials = chain(
        *(_of_family(inputs, family, undisturbed, counts, seed) for family in families),
    )
    with ProcessPoolExecutor(jobs, get_context("fork")) as pool:
        judge = partial(attempt, folder, undisturbed.results)
        everything = [trial for trial in trials if only in trial.group]
        random.Random(seed).shuffle(everything)
        for trial, verdict in zip(everything, pool.map(judge, everything), strict=True):
            report(trial, verdict)


def _of_family(
    inputs: Path, family: str, undisturbed: Undisturbed, size: Size, seed: int
) -> Iterator[Trial]:
    """Yield the trials on one family of models, so many of each kind."""
    chance = random.Random(f"{seed} {family}")
    cold = training(inputs, family, {})
    done = undisturbed.add(cold)
    caches = {name: content for name, content in done.items() if name.startswith("cache")}
    warm = replace(cold, start=caches)
    undisturbed.add(warm)
    later = list(_after_training(inputs, family, done))
    for work in later:
        undisturbed.add(work)

    yield from _kills(warm, size.kills, undisturbed, chance)
    for work in later:
        yield from _kills(work, size.kills // 5, undisturbed, chance)
    for work in (cold, *later):
        crashed, calls = states(work, undisturbed.folder)
        yield from some(crashed, size.states, chance)
        yield from _faults(work, calls, size.faults, chance)
    yield from damages(list(_damaged(inputs, warm, later, undisturbed)), size.damages, seed)


def _after_training(inputs: Path, family: str, done: Tree) -> Iterator[Work]:
    """Yield what is done with a finished run."""
    for work in (evaluation(inputs, RUN, done), *(export(form, done) for form in _FORMS)):
        yield replace(work, name=f"{work.name} {family}")


def _kills(
    work: Work, count: int, undisturbed: Undisturbed, chance: random.Random
) -> Iterator[Kill]:
    """Yield kills over the whole life of a work; every fourth time the next process dies, too."""
    life = undisturbed.seconds[work.name]
    for number in range(count):
        first = life * (number + chance.random()) / count
        yield Kill(work, (first, life * chance.random()) if number % 4 == 3 else (first,))


def states(work: Work, folder: Path) -> tuple[list[State], int]:
    """Return the different states in which a crash leaves a work, and the number of its calls."""
    found: dict[tuple[tuple[str, bytes | None], ...], State] = {}
    calls = 0
    with new_place(folder, work.start) as place:
        (place / "tmp").mkdir()
        disk = Disk(place)

        def answer(call: Call) -> int:
            nonlocal calls
            disk.before(call)
            calls += call.name != "read"
            if call.changes:
                short = f"{call.name} {call.path.removeprefix(f'{place}/')}"
                for kind, tree in _crashes(disk):
                    found.setdefault(tuple(tree.items()), State(work, kind, short, tree))
            return GO_ON

        run(work.begin, place, answer=answer)
    return list(found.values()), calls


def _crashes(disk: Disk) -> Iterator[tuple[str, Tree]]:
    """Yield what is on disk after each kind of crash."""
    yield "process died", read_tree(disk.root)
    yield "power cut, data cut", disk.without_unflushed_data(zeroed=False)
    yield "power cut, data zeroed", disk.without_unflushed_data(zeroed=True)
    yield "power cut, names lost", dict(sorted(disk.flushed_alone().items()))


def some(states: Sequence[State], count: int | None, chance: random.Random) -> Sequence[State]:
    """Return `count` states of each kind, in their order; all if it is None."""
    if count is None:
        return states
    kinds = {state.kind for state in states}
    alike = [[state for state in states if state.kind == kind] for kind in sorted(kinds)]
    return [s for group in alike for s in chance.sample(group, min(count, len(group)))]


def _faults(work: Work, calls: int, count: int, chance: random.Random) -> Iterator[Fault]:
    for error, lasting in ((errno.ENOSPC, False), (errno.EIO, False), (errno.ENOSPC, True)):
        for number in sorted(chance.sample(range(1, calls + 1), min(count, calls))):
            yield Fault(work, number, error, lasting)


def _damaged(
    inputs: Path, warm: Work, later: Sequence[Work], undisturbed: Undisturbed
) -> Iterator[tuple[str, Work, list[str]]]:
    """Yield the works whose files are damaged: a name, the work, and the files."""
    half = stopped(warm, undisturbed.folder, _saving_the_last_checkpoint())
    resumed = replace(warm, begin=warm.go_on, start=half)
    yield "interrupted run", resumed, _files(half, RUN)
    yield "caches", replace(warm, go_on=warm.begin), _files(warm.start, "cache")
    first = later[0]
    yield "finished adapter", first, _files(first.start, f"{RUN}/adapter")
    journal = stopped(first, undisturbed.folder, _writing_the_third_time(".journal"))
    yield "journal", replace(first, start=journal), [n for n in journal if n.endswith(".journal")]
    for work, form in zip(later[1:], _FORMS, strict=True):
        exported = undisturbed.trees[work.name]
        name = f"evaluate {work.name.removeprefix('export ')}"
        answering = replace(evaluation(inputs, form, exported), name=name)
        undisturbed.add(answering)
        yield f"export {form}", answering, _files(exported, form)


def _saving_the_last_checkpoint() -> Answer:
    return dying(lambda call: call.name == "rename" and call.other.endswith("step-000008"))


def _writing_the_third_time(ending: str) -> Answer:
    times = 0

    def is_it(call: Call) -> bool:
        nonlocal times
        times += call.name == "write" and call.path.endswith(ending)
        return times == 3

    return dying(is_it)


def _files(tree: Tree, folder: str) -> list[str]:
    return [
        name
        for name, content in tree.items()
        if content is not None and name.startswith(f"{folder}/") and "/.l" not in f"/{name}"
    ]
