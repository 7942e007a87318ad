"""Save an analysis of an adapter: what it shows in words, tables, plots, and JSON.

It can be read again from the JSON.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import fmean, median

from pydantic import TypeAdapter, ValidationError

from loraqa.analysis.learned import (
    KIND,
    LAYER,
    RANK,
    SCALE,
    TOP,
    Compared,
    Effect,
    Effects,
    Learned,
    Likeness,
    Measured,
    Phi,
    by_kind,
    mean_of,
    name_of,
    pairs_of_layers,
)
from loraqa.analysis.significance import Estimate
from loraqa.errors import InputError, counted, shortened
from loraqa.files import read_json, write_json, write_text
from loraqa.report.errors import FEWEST_CONTEXTS_TO_CLAIM, interval_cell, interval_text
from loraqa.report.learned_plots import figures
from loraqa.report.plots import save_png
from loraqa.report.tables import Column, Table, common_module

FILE = "analysis.json"


def save_learned(learned: Learned, folder: Path) -> None:
    """Write `analysis.json`, `analysis.md` and the plots."""
    write_json(folder / FILE, learned.to_json())
    plots = figures(learned)
    pictures = [f"![{caption}]({name}.png)" for name, (_, caption) in plots.items()]
    shown = [*tables(learned), updates_table(learned.updates)]
    parts = [
        "# What the adapter learned",
        *findings(learned),
        *pictures,
        *(f"## {table.title}\n\n{table.to_markdown().rstrip()}" for table in shown),
    ]
    write_text(folder / "analysis.md", "\n\n".join(parts) + "\n")
    for name, (figure, _) in plots.items():
        save_png(figure, folder / f"{name}.png")
    # An earlier analysis may have compared more.
    for name in ("layers", "growth", "against-*", "effects"):
        for path in folder.glob(f"{name}.png"):
            if path.stem not in plots:
                path.unlink()


def load_learned(folder: Path) -> Learned | None:
    """Return the analysis in a folder; None if there is none.

    Raises:
        InputError: the file is damaged, or another version wrote it.
    """
    path = folder / FILE
    if not path.exists():
        return None
    try:
        return TypeAdapter(Learned).validate_python(read_json(path))
    except ValidationError:
        raise InputError(
            f"{path} is not what this version of `loraqa analyze` writes; analyze again."
        ) from None


def tables(learned: Learned) -> list[Table]:
    """Return the tables that an analysis has, but that of all matrices."""
    found = [kinds_table(learned.updates)]
    if learned.checkpoints:
        found.append(checkpoints_table(learned))
    if learned.others:
        found.append(others_table(learned.others))
    if learned.effects:
        found.append(effects_table(learned.effects))
    return found


def updates_table(updates: Sequence[Measured]) -> Table:
    """Return a table of all matrices; its title has the names' common prefix."""
    module = common_module(update.name for update in updates)
    rows = tuple((each.name.removeprefix(f"{module}."), *_cells([each])) for each in updates)
    title = "Updates" + (f" in {module}" if module else "")
    return Table(title, (Column("matrix"), *_COLUMNS), rows)


def kinds_table(updates: Sequence[Measured]) -> Table:
    """Return a table of the means over the layers of each kind of matrix."""
    rows = tuple((kind, *_cells(of_kind)) for kind, of_kind in by_kind(updates).items())
    return Table("Updates by kind, means over layers", (Column("kind"), *_COLUMNS), rows)


_COLUMNS = (
    Column("r", ".3g"),
    Column("‖ΔW‖", ".3g"),
    Column("/‖W‖", ".2%"),
    Column("σ₁/W's", ".2%"),
    Column("stable", ".1f"),
    Column("effective", ".1f"),
    Column("amplifies", ".3g"),
)


def _cells(updates: Sequence[Measured]) -> tuple[float | None, ...]:
    return (
        mean_of(each.rank for each in updates),
        mean_of(each.norm for each in updates),
        mean_of(each.relative_norm for each in updates),
        mean_of(each.relative_spectral_norm for each in updates),
        mean_of(each.stable_rank for each in updates),
        mean_of(each.effective_rank for each in updates),
        mean_of(each.amplification for each in updates),
    )


def checkpoints_table(learned: Learned) -> Table:
    """Return a table of the means over all matrices at each checkpoint."""
    growth = _growth(learned)
    columns = (
        Column("step", ",d"),
        Column("‖ΔW‖/‖W‖", ".2%"),
        Column("effective rank", ".2f"),
        Column("φ of A", ".3f"),
        Column("φ of inputs", ".3f"),
        Column("φ of outputs", ".3f"),
    )
    rows = tuple((each.step, each.size, each.effective_rank, *each.sides) for each in growth)
    return Table(f"Checkpoints; φ of at most {TOP} directions with the adapter", columns, rows)


def others_table(others: Sequence[Compared]) -> Table:
    """Return a table of how alike other adapters are, as means over the shared matrices."""
    sides = ("a", "inputs", "outputs")
    columns = (Column("adapter"), Column("r"), Column("A"), Column("inputs"), Column("outputs"))
    rows = tuple(
        (
            shortened(other.name, 18),
            _ranks(other.ranks),
            *(_with_chance(other.likenesses, side) for side in sides),
        )
        for other in others
    )
    return Table(f"Other adapters; φ of at most {TOP} directions (of random ones)", columns, rows)


def effects_table(effects: Effects) -> Table:
    """Return a table of the scores after each change of the adapter."""
    columns = (
        *(Column("change"), Column("EM", ".1f"), Column("F1", ".1f")),
        *(Column("EM lost"), Column("F1 lost")),
    )
    rows = tuple(
        (
            each.name,
            each.exact_match.mean,
            each.f1.mean,
            _cell(each.exact_match_lost, effects.contexts),
            _cell(each.f1_lost, effects.contexts),
        )
        for each in effects.effects
    )
    title = (
        f"Parts of the adapter taken away, {effects.strategy} answers to "
        f"{counted(effects.questions, 'question')}"
    )
    return Table(title, columns, rows)


def findings(learned: Learned) -> list[str]:
    """Return paragraphs that say what the figures show.

    A loss is claimed only if its interval does not hold 0. If the contexts are too few for
    intervals, none is claimed.
    """
    return [
        _size(learned.updates),
        _ranks_told(learned.updates),
        *_amplification(learned.updates),
        *_layers(learned),
        *_growth_told(learned),
        *map(_other_told, learned.others),
        *(_effects_told(learned.effects) if learned.effects else ()),
    ]


def _size(updates: Sequence[Measured]) -> str:
    ranks = _ranks(sorted({each.rank for each in updates}))
    sentences = [
        f"The adapter changes {_matrices(len(updates))}, with rank {ranks}.",
        _range("‖ΔW‖ is", updates, lambda each: each.relative_norm, ".2%", " of ‖W‖"),
    ]
    kinds = {
        kind: size
        for kind, of_kind in by_kind(updates).items()
        if (size := mean_of(each.relative_norm for each in of_kind)) is not None
    }
    if len(kinds) > 1:
        told = ", ".join(
            f"{kind} {size:.2%}" for kind, size in sorted(kinds.items(), key=lambda kv: -kv[1])
        )
        sentences.append(f"By kind of matrix, most changed first: {told}.")
    if zero := [each.name for each in updates if not each.norm]:
        sentences.append(f"{_matrices(len(zero))} did not change, such as {zero[0]}.")
    return " ".join(sentences)


def _ranks_told(updates: Sequence[Measured]) -> str:
    used = mean_of(each.effective_rank / each.rank for each in updates) or 0.0
    first = mean_of(each.top_share for each in updates) or 0.0
    return " ".join(
        [
            _range("The effective rank is", updates, lambda each: each.effective_rank, ".1f"),
            f"This is {used:.0%} of r on average.",
            _range("The stable rank is", updates, lambda each: each.stable_rank, ".1f"),
            f"The first direction alone holds {first:.0%} of ‖ΔW‖² on average.",
        ]
    )


def _amplification(updates: Sequence[Measured]) -> Iterator[str]:
    factors = {each.name: factor for each in updates if (factor := each.amplification)}
    if not factors:
        return
    preference = median(found for each in updates if (found := each.preference))
    share = median(found for each in updates if (found := each.share))
    least, most = min(factors, key=factors.__getitem__), max(factors, key=factors.__getitem__)
    yield (
        f"In the directions of ΔW, W has {preference:.2g} times the norm that it has in random "
        f"directions, and {share:.1%} of what it has in its own largest ones (medians over "
        f"matrices). In these directions ΔW is {median(factors.values()):.2g} times as large as W: "
        f"from {factors[least]:.2g} in {least} to {factors[most]:.2g} in {most}."
    )


def _layers(learned: Learned) -> Iterator[str]:
    for side in ("inputs", "outputs"):
        if pairs := list(pairs_of_layers(learned.layers, side)):
            most = max(pairs, key=lambda pair: pair.value)
            yield (
                f"The largest {side[:-1]} directions (at most {TOP}) of two layers' updates have "
                f"φ = {fmean(pair.value for pair in pairs):.3f} on average, and random ones "
                f"{fmean(pair.random for pair in pairs):.3f}. Most alike are {most.name}: "
                f"{most.value:.3f}."
            )


def _growth_told(learned: Learned) -> Iterator[str]:
    growth = _growth(learned)
    if len(growth) < 2:
        return
    first, last = growth[0], growth[-1]
    sentences = [
        f"From step {first.step:,} to step {last.step:,}, ‖ΔW‖/‖W‖ went from {first.size:.2%} to "
        f"{last.size:.2%} and the effective rank from {first.effective_rank:.1f} to "
        f"{last.effective_rank:.1f} (means over matrices)."
    ]
    if first.inputs is not None and first.outputs is not None:
        sentences.append(
            f"The largest directions (at most {TOP}) of step {first.step:,} and of the adapter "
            f"have φ = {first.inputs:.2f} (inputs) and {first.outputs:.2f} (outputs)."
        )
    yield " ".join(sentences)


def _other_told(other: Compared) -> str:
    sides = {"A": "a", "the inputs": "inputs", "the outputs": "outputs"}
    told = [
        f"{found} for {name}"
        for name, side in sides.items()
        if (found := _with_chance(other.likenesses, side))
    ]
    return (
        f"{other.name} (rank {_ranks(other.ranks)}) shares {_matrices(len(other.likenesses))} with "
        f"the adapter. φ of the largest directions (at most {TOP}), and of random ones in "
        f"brackets, is on average {', '.join(told)}."
    )


def _effects_told(effects: Effects) -> Iterator[str]:
    base, adapted = effects.scaled(0), effects.scaled(1)
    told = partial(_cell, contexts=effects.contexts)
    yield (
        f"{counted(effects.questions, 'question')} on {counted(effects.contexts, 'context')} of "
        f"{effects.data} were answered with {effects.strategy}. The base has exact match "
        f"{told(base.exact_match)} and F1 {told(base.f1)}, the adapter exact match "
        f"{told(adapted.exact_match)} and F1 {told(adapted.f1)}. Intervals are 95%, by bootstrap "
        "over contexts. Losses are taken question by question."
    )
    if effects.contexts < FEWEST_CONTEXTS_TO_CLAIM:
        yield (
            f"{counted(effects.contexts, 'context')} are too few for a claim, so no loss is "
            "claimed here; analyze more questions."
        )
        return
    for change, what in ((LAYER, "layer"), (KIND, "kind of matrix")):
        if found := effects.of(change):
            yield " ".join(_losses(found, what))
    if found := effects.of(RANK):
        yield " ".join(_cuts(found))
    yield " ".join(_scales(effects.of(SCALE)))
    if (count := len(effects.effects)) >= 20:
        yield (
            f"{count} changes were tried. If none mattered, the intervals of about "
            f"{count / 20:.0f} would exclude 0 by chance."
        )


def _losses(found: Sequence[Effect], what: str) -> Iterator[str]:
    worse = [each for each in found if each.f1_lost.sign > 0]
    better = [each for each in found if each.f1_lost.sign < 0]
    if worse:
        ordered = sorted(worse, key=lambda each: -each.f1_lost.mean)
        told = ", ".join(f"{_subject(each)} {_told(each.f1_lost)}" for each in ordered)
        yield f"Switching off one {what} loses F1: {told}."
    if better:
        yield f"Switching off one {what} gains F1: {_gains(better)}."
    if rest := len(found) - len(worse) - len(better):
        yield (
            f"For {rest} of {counted(len(found), what.split(' of ')[0])} no change of F1 is seen "
            "when one is switched off."
        )


def _cuts(found: Sequence[Effect]) -> Iterator[str]:
    costs = [each for each in found if each.f1_lost.sign > 0]
    if costs:
        told = ", ".join(f"rank {each.value} {_told(each.f1_lost)}" for each in costs)
        yield f"Cut to a lower rank, the updates lose F1: {told}."
    if free := [each.value for each in found if each.f1_lost.sign <= 0]:
        yield f"No loss is seen at rank {', '.join(map(str, free))}."


def _scales(found: Sequence[Effect]) -> Iterator[str]:
    best = max(found, key=lambda each: each.f1.mean)
    yield f"Of all factors, {best.value:g} scores highest, with F1 {_told(best.f1)}."
    better = [each for each in found if each.f1_lost.sign < 0]
    if better:
        yield f"Better than unscaled: {_gains(better)}."
    else:
        yield "No factor is better than 1 by more than its interval."


def _gains(found: Iterable[Effect]) -> str:
    """Name effects with the F1 that they gain, the largest first."""
    ordered = sorted(found, key=lambda each: each.f1_lost.mean)
    gains = [Estimate(-f1.mean, -f1.high, -f1.low) for f1 in (each.f1_lost for each in ordered)]
    told = zip(ordered, gains, strict=True)
    return ", ".join(f"{_subject(each)} {_told(gain)}" for each, gain in told)


def _subject(effect: Effect) -> str:
    return name_of(effect.change, effect.value).removesuffix(" off")


@dataclass(frozen=True)
class _Grown:
    """The means over all matrices at a checkpoint."""

    step: int
    size: float
    effective_rank: float
    a: float | None
    inputs: float | None
    outputs: float | None

    @property
    def sides(self) -> tuple[float | None, ...]:
        return self.a, self.inputs, self.outputs


def _growth(learned: Learned) -> list[_Grown]:
    base = {update.name: update.base_norm for update in learned.updates}
    return [
        _Grown(
            each.step,
            mean_of(of.norm / base[of.name] for of in each.spectra if base.get(of.name)) or 0.0,
            mean_of(of.effective_rank for of in each.spectra) or 0.0,
            *(_mean(each.likenesses, side) for side in ("a", "inputs", "outputs")),
        )
        for each in learned.checkpoints
    ]


def _mean(likenesses: Iterable[Likeness], side: str) -> float | None:
    found: list[Phi | None] = [getattr(each, side) for each in likenesses]
    return mean_of(phi.value for phi in found if phi)


def _with_chance(likenesses: Iterable[Likeness], side: str) -> str | None:
    """Return the mean of φ, and that of random directions in brackets; None if there is none."""
    found = [phi for each in likenesses if (phi := getattr(each, side))]
    if not found:
        return None
    return f"{fmean(phi.value for phi in found):.3f} ({fmean(phi.random for phi in found):.3f})"


def _range(
    start: str,
    updates: Sequence[Measured],
    figure: Callable[[Measured], float | None],
    form: str,
    unit: str = "",
) -> str:
    """Return a sentence with the mean of a figure, and its extremes if there are several."""
    known = [(value, each.name) for each in updates if (value := figure(each)) is not None]
    if not known:
        return f"{start} not known."
    mean, low, high = fmean(value for value, _ in known), min(known), max(known)
    if len(known) == 1:
        return f"{start} {mean:{form}}{unit}."
    return (
        f"{start} {mean:{form}}{unit} on average, from {low[0]:{form}} in {low[1]} to "
        f"{high[0]:{form}} in {high[1]}."
    )


def _ranks(ranks: Sequence[int]) -> str:
    return str(ranks[0]) if len(ranks) == 1 else f"{ranks[0]} to {ranks[-1]}"


def _matrices(number: int) -> str:
    return f"{number:,} {'matrix' if number == 1 else 'matrices'}"


def _cell(estimate: Estimate, contexts: int) -> str:
    """Return a mean with its interval; if the contexts are too few for one, with their number."""
    return f"{estimate.mean:.1f} ({interval_cell(estimate, contexts)})"


def _told(estimate: Estimate) -> str:
    """Return a mean with its interval, to a tenth."""
    return f"{estimate.mean:.1f} ({interval_text(estimate)})"
