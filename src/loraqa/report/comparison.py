"""Save a comparison of decoding strategies: what it shows in words, tables, a plot, and JSON.

It can be read again from the JSON.
"""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from loraqa.analysis.significance import Estimate
from loraqa.answer.compare import ORACLE, RISK, VOTE, Comparison
from loraqa.errors import InputError, counted
from loraqa.files import read_json, write_json, write_text
from loraqa.report.errors import (
    FEWEST_CONTEXTS,
    FEWEST_CONTEXTS_TO_CLAIM,
    interval_cell,
    interval_text,
)
from loraqa.report.plots import quality_against_diversity, save_png
from loraqa.report.tables import Column, Table

# With fewer strategies, a correlation says nothing.
_FEWEST_STRATEGIES = 5

_FILE = "comparison.json"
_PLOT = "quality-against-diversity.png"


def save_comparison(compared: Sequence[Comparison], folder: Path) -> None:
    """Write `comparison.json`, `comparison.md` and `quality-against-diversity.png`."""
    write_json(folder / _FILE, [row.to_json() for row in compared])
    write_text(folder / "comparison.md", _page(compared))
    save_png(quality_against_diversity(compared), folder / _PLOT)


def load_comparison(folder: Path) -> list[Comparison]:
    """Return the comparison in a folder; an empty list if there is none.

    Raises:
        InputError: the file is damaged, or another version wrote it.
    """
    path = folder / _FILE
    if not path.exists():
        return []
    try:
        return TypeAdapter(list[Comparison]).validate_python(read_json(path))
    except ValidationError:
        raise InputError(
            f"{path} is not what this version of `loraqa compare` writes; compare again."
        ) from None


def _page(compared: Sequence[Comparison]) -> str:
    tables = (choices_table(compared), variety_table(compared), samples_table(compared))
    parts = [
        "# How decoding changes quality and diversity",
        *findings(compared),
        f"![F1 of one answer against distinct answers per question]({_PLOT})",
        *(f"## {table.title}\n\n{table.to_markdown().rstrip()}" for table in tables if table.rows),
    ]
    return "\n\n".join(parts) + "\n"


def choices_table(compared: Sequence[Comparison]) -> Table:
    """Return a table of the ways to choose an answer, with intervals and tests."""
    first = compared[0].strategy
    columns = (
        Column("strategy"),
        Column("answer"),
        Column("EM"),
        Column("F1"),
        Column("F1 gained by choosing"),
        Column(f"F1 against {first}"),
        Column(f"EM against {first}, p", ".2g"),
    )
    rows = tuple(
        (
            row.strategy,
            choice.name,
            _cell(choice.exact_match, row.contexts),
            _cell(choice.f1, row.contexts),
            _cell(choice.f1_gain, row.contexts, "+"),
            _cell(choice.f1_change, row.contexts, "+"),
            choice.exact_match_p,
        )
        for row in compared
        for choice in row.choices
    )
    return Table("Quality", columns, rows)


def variety_table(compared: Iterable[Comparison]) -> Table:
    """Return a table of how much the answers of each strategy vary, and what they cost."""
    columns = (
        Column("strategy"),
        Column("answers", "d"),
        Column("found", ".1%"),
        Column("distinct", ".2f"),
        Column("entropy", ".2f"),
        Column("distinct-1", ".2f"),
        Column("distinct-2", ".2f"),
        Column("self-BLEU", ".1f"),
        Column("tokens a question", ".1f"),
        Column("seconds a question", ".3f"),
    )
    rows = tuple(
        (row.strategy, row.samples, row.found, *_variety(row), row.tokens, _seconds(row))
        for row in compared
    )
    return Table("Diversity and cost", columns, rows)


def samples_table(compared: Iterable[Comparison]) -> Table:
    """Return a table of what fewer samples give."""
    columns = (
        Column("strategy"),
        Column("samples", "d"),
        Column("F1 by vote", ".1f"),
        Column("F1 by MBR", ".1f"),
        Column("oracle F1", ".1f"),
        Column("distinct", ".2f"),
    )
    rows = tuple(
        (row.strategy, each.samples, each.vote_f1, each.mbr_f1, each.oracle_f1, each.distinct)
        for row in compared
        for each in row.by_samples
    )
    return Table("By number of samples", columns, rows)


def findings(compared: Sequence[Comparison]) -> list[str]:
    """Return paragraphs that say what the figures show.

    A difference is claimed only if its interval does not hold 0, and none on few contexts.
    """
    first = compared[0]
    about = (
        f"{counted(first.questions, 'question')} on {counted(first.contexts, 'context')} were "
        f"answered in {counted(len(compared), 'way')}, with up to "
        f"{counted(max(row.samples for row in compared), 'answer')} to each. "
    )
    if first.contexts >= FEWEST_CONTEXTS:
        about += "Intervals are 95%, by bootstrap over contexts. "
    about += "Differences are taken question by question."
    measured = [*_variety_told(compared), *_oracle_told(compared), *_rest_told(compared)]
    if first.contexts < FEWEST_CONTEXTS_TO_CLAIM:
        few = (
            f"{counted(first.contexts, 'context')} are too few for a claim, so no difference is "
            "claimed here; compare on more questions."
        )
        return [about, few, *measured]
    claims = [_quality(compared), *_choosing(compared), *_variety_claimed(compared)]
    return [about, *claims, *measured, *_chance(compared)]


def _quality(compared: Sequence[Comparison]) -> str:
    first, *others = compared
    name, plain = first.strategy, first.plain
    groups = _by_sign((row.strategy, row.plain.f1_change) for row in others)
    sentences = [
        f"{name} has exact match {_told(plain.exact_match)} and F1 {_told(plain.f1)}.",
        *_listed(f"By F1 of one answer, better than {name}", groups[1]),
        *_listed(f"By F1 of one answer, worse than {name}", groups[-1]),
        *_listed(f"Not told apart from {name}", groups[0]),
    ]
    return " ".join(sentences)


def _choosing(compared: Sequence[Comparison]) -> Iterator[str]:
    """Yield paragraphs about the vote, about MBR, and about both against the first strategy."""
    for name, what in (
        (VOTE, "The vote of the samples"),
        (RISK, "The answer with the least Bayes risk (MBR)"),
    ):
        chosen = ((row.strategy, row.choice(name)) for row in compared)
        groups = _by_sign((strategy, choice.f1_gain) for strategy, choice in chosen if choice)
        sentences = [
            *_listed(f"{what} scores higher than one sample or the best answer with", groups[1]),
            *_listed(f"{what} scores lower with", groups[-1]),
            *_listed(f"{what} is not told apart from one answer with", groups[0]),
        ]
        if sentences:
            yield " ".join(sentences)
    chosen_so = [(row, choice) for row in compared for choice in row.choices]
    groups = _by_sign(
        (f"{row.strategy} by {choice.name}", choice.f1_change)
        for row, choice in chosen_so
        if choice.name in (VOTE, RISK)
    )
    first = compared[0].strategy
    yield from _listed(f"Chosen so, better than one answer of {first}", groups[1])
    if not groups[1] and any(groups.values()):
        yield f"No answers chosen so are better than {first} by more than their interval."


def _variety_claimed(compared: Sequence[Comparison]) -> Iterator[str]:
    """Yield a paragraph about quality and variety of the strategies that sample."""
    rows = _sampling(compared)
    if len(rows) < 2:
        return
    least, most = rows[0], rows[-1]
    apart = least.plain.f1.low > most.plain.f1.high or most.plain.f1.low > least.plain.f1.high
    sentences = [
        f"One sample has F1 {_told(least.plain.f1)} with {least.strategy}, which varies least, and "
        f"{_told(most.plain.f1)} with {most.strategy}, which varies most: the intervals "
        f"{'are apart' if apart else 'overlap'}."
    ]
    correlation = _correlation(rows)
    if correlation is not None:
        sentences.append(
            f"Over the {len(rows)} strategies that sample, the rank correlation (Spearman) of F1 "
            f"and distinct answers is {correlation:.2f}."
        )
    yield " ".join(sentences)


def _correlation(rows: Sequence[Comparison]) -> float | None:
    """Return Spearman's correlation of variety and F1; None if it would say nothing."""
    from scipy.stats import spearmanr

    variety, f1 = [row.distinct for row in rows], [row.f1 for row in rows]
    if len(rows) < _FEWEST_STRATEGIES or len(set(variety)) == 1 or len(set(f1)) == 1:
        return None
    return float(spearmanr(variety, f1).statistic)


def _variety_told(compared: Sequence[Comparison]) -> Iterator[str]:
    rows = _sampling(compared)
    if rows:
        least, most = rows[0], rows[-1]
        yield (
            f"Among {counted(most.samples, 'sample')} of a question are from {least.distinct:.2f} "
            f"({least.strategy}) to {most.distinct:.2f} ({most.strategy}) different answers."
        )


def _oracle_told(compared: Sequence[Comparison]) -> Iterator[str]:
    rows = [row for row in compared if row.choice(ORACLE)]
    if rows:
        best = max(rows, key=lambda row: row.oracle_f1)
        yield (
            f"Of up to {counted(best.samples, 'answer')} of {best.strategy} the one that scores "
            f"highest has F1 {best.oracle_f1:.1f}, {best.oracle_f1 - best.f1:.1f} more than "
            f"{'one sample' if best.draws else 'the best answer'}: so much could be gained by "
            "knowing which one to choose."
        )


def _rest_told(compared: Sequence[Comparison]) -> Iterator[str]:
    """Yield a paragraph about places in the context, and about time."""
    found = {row.strategy: row.found for row in compared if row.found is not None}
    always = [name for name, share in found.items() if share == 1]
    sentences = list(_listed("All answers stand in the context with", always))
    if len(always) < len(found):
        name, share = min(found.items(), key=lambda pair: pair[1])
        sentences.append(f"Fewest stand in the context with {name}: {share:.1%}.")
    fast, slow = min(compared, key=_seconds), max(compared, key=_seconds)
    sentences.append(
        f"All answers to a question took from {_seconds(fast):.3f} seconds ({fast.strategy}) to "
        f"{_seconds(slow):.3f} ({slow.strategy}), measured once."
    )
    yield " ".join(sentences)


def _chance(compared: Sequence[Comparison]) -> Iterator[str]:
    """Yield a warning about many differences, some of which seem to be there by chance."""
    choices = [choice for row in compared for choice in row.choices]
    looked_at = [d for choice in choices for d in (choice.f1_gain, choice.f1_change) if d]
    if len(looked_at) >= 20:
        yield (
            f"{len(looked_at)} differences were looked at. If there were none, the intervals of "
            f"about {len(looked_at) / 20:.0f} of them would exclude 0 by chance."
        )


def _by_sign(differences: Iterable[tuple[str, Estimate | None]]) -> dict[int, list[str]]:
    """Return the names of the differences above 0 (1), below 0 (-1), and of the others (0).

    Those that are not 0 are told with their interval, the largest first.
    """
    groups: dict[int, list[str]] = {1: [], -1: [], 0: []}
    known = [(name, difference) for name, difference in differences if difference]
    for name, difference in sorted(known, key=lambda pair: -abs(pair[1].mean)):
        told = f"{name} {_told(difference, '+')}" if difference.sign else name
        groups[difference.sign].append(told)
    return groups


def _listed(start: str, names: Sequence[str]) -> Iterator[str]:
    """Yield a sentence with the names, if there are any."""
    if names:
        yield f"{start}: {', '.join(names)}."


def _sampling(compared: Iterable[Comparison]) -> list[Comparison]:
    """Return the strategies that draw several samples, by how much these vary."""
    rows = (row for row in compared if row.draws and row.samples > 1)
    return sorted(rows, key=lambda row: row.distinct)


def _variety(row: Comparison) -> tuple[float | None, ...]:
    if not row.draws or row.samples == 1:
        return (None,) * 5
    return row.distinct, row.entropy, row.distinct_1, row.distinct_2, row.self_bleu


def _seconds(row: Comparison) -> float:
    return row.seconds / row.questions


def _cell(estimate: Estimate | None, contexts: int, sign: str = "") -> str | None:
    if estimate is None:
        return None
    return f"{estimate.mean:{sign}.1f} ({interval_cell(estimate, contexts, sign)})"


def _told(estimate: Estimate, sign: str = "") -> str:
    """Return a mean with its interval, to a tenth."""
    return f"{estimate.mean:{sign}.1f} ({interval_text(estimate, sign)})"
