"""What a comparison says in words follows from its figures; its files hold them."""

import json
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import spearmanr
from tests.report.comparisons import choice, drawn, estimate, searched

from loraqa.analysis.significance import Estimate
from loraqa.answer.compare import BEST, ONE, ORACLE, RISK, VOTE, Comparison
from loraqa.errors import InputError
from loraqa.files import write_json
from loraqa.report.comparison import (
    choices_table,
    findings,
    load_comparison,
    samples_table,
    save_comparison,
    variety_table,
)

NAMES = ("temperature:0.7", "top-k:40", "top-p:0.9", "min-p:0.05", "typical")

differences = st.tuples(
    st.floats(-9, 9).filter(lambda mean: abs(mean) > 0.5), st.floats(0.01, 9)
).map(lambda pair: estimate(*pair))
f1s = st.floats(30, 90)


@st.composite
def comparisons(draw: st.DrawFn) -> list[Comparison]:
    """A reference, and strategies that sample with any differences to it and among themselves."""

    def sampling(name: str) -> Comparison:
        choices = (
            choice(ONE, draw(f1s), f1_change=draw(differences)),
            choice(VOTE, 60, f1_gain=draw(differences), f1_change=draw(differences)),
            choice(RISK, 60, f1_gain=draw(differences), f1_change=draw(differences)),
            choice(ORACLE, 95),
        )
        return drawn(name, choices=choices, distinct=draw(st.floats(1, 5)))

    return [searched("span", 80), *map(sampling, NAMES[: draw(st.integers(1, 5))])]


def named(paragraphs: Sequence[str], start: str) -> set[str]:
    """Return the names in the sentence that starts so."""
    text = " ".join(paragraphs)
    found = re.search(rf"{re.escape(start)}: (.*?)\.(?: |$)", text)
    names = re.split(r", (?=[a-z])", found[1]) if found else []
    return {re.sub(r" [+-][\d.]+ \(.*\)$", "", name) for name in names}


def of_sign(pairs: Sequence[tuple[str, Estimate | None]], sign: int) -> set[str]:
    """Return the names whose interval lies above 0, below 0, or around it."""
    signs = {name: (d.low > 0) - (d.high < 0) for name, d in pairs if d is not None}
    return {name for name in signs if signs[name] == sign}


@given(comparisons())
def test_a_difference_is_claimed_only_if_its_interval_does_not_hold_0(
    compared: list[Comparison],
) -> None:
    paragraphs = findings(compared)
    plain = [(row.strategy, row.plain.f1_change) for row in compared[1:]]
    assert named(paragraphs, "By F1 of one answer, better than span") == of_sign(plain, 1)
    assert named(paragraphs, "By F1 of one answer, worse than span") == of_sign(plain, -1)
    assert named(paragraphs, "Not told apart from span") == of_sign(plain, 0)
    for name, what in (
        (VOTE, "The vote of the samples"),
        (RISK, "The answer with the least Bayes risk (MBR)"),
    ):
        gains = [(row.strategy, row.choice(name).f1_gain) for row in compared[1:]]
        higher = "scores higher than one sample or the best answer with"
        assert named(paragraphs, f"{what} {higher}") == of_sign(gains, 1)
        assert named(paragraphs, f"{what} scores lower with") == of_sign(gains, -1)
        assert named(paragraphs, f"{what} is not told apart from one answer with") == of_sign(
            gains, 0
        )
    chosen = [
        (f"{row.strategy} by {name}", row.choice(name).f1_change)
        for row in compared[1:]
        for name in (VOTE, RISK)
    ]
    better = of_sign(chosen, 1)
    assert named(paragraphs, "Chosen so, better than one answer of span") == better
    none = "No answers chosen so are better than span by more than their interval."
    assert (none in paragraphs) == (not better)


@given(comparisons())
def test_quality_and_variety_are_told_of_both_ends(compared: list[Comparison]) -> None:
    text = "\n".join(findings(compared))
    rows = sorted(compared[1:], key=lambda row: row.distinct)
    low, high = rows[0], rows[-1]
    ends = f"{low.distinct:.2f} ({low.strategy}) to {high.distinct:.2f} ({high.strategy})"
    assert ends in text
    first, last = low.plain.f1, high.plain.f1
    overlap = max(first.low, last.low) <= min(first.high, last.high)
    assert ("the intervals overlap" in text) == (overlap and len(rows) > 1)
    assert ("the intervals are apart" in text) == (not overlap)


def test_the_correlation_is_spearmans() -> None:
    rows = [
        drawn(name, f1=f1, distinct=distinct)
        for name, f1, distinct in zip(
            NAMES, (80, 70, 75, 60, 65), (1.1, 2, 1.5, 1.9, 3), strict=True
        )
    ]
    expected = spearmanr([80, 70, 75, 60, 65], [1.1, 2, 1.5, 1.9, 3]).statistic
    text = "\n".join(findings([searched("span"), *rows]))
    assert f"(Spearman) of F1 and distinct answers is {expected:.2f}." in text
    alike = [replace(row, distinct=2.0) for row in rows]
    assert "Spearman" not in "\n".join(findings([searched("span"), *alike]))


@given(comparisons())
def test_few_contexts_allow_no_claim(compared: list[Comparison]) -> None:
    paragraphs = findings([replace(row, contexts=19) for row in compared])
    assert "Intervals are 95%" in paragraphs[0]
    assert "19 contexts are too few for a claim" in paragraphs[1]
    text = "\n".join(paragraphs)
    for claim in ("better", "worse", "scores higher", "told apart", "are apart", "(+", "(-"):
        assert claim not in text


def test_fewer_than_ten_contexts_have_no_interval(tmp_path: Path) -> None:
    changed = choice(ONE, 60, f1_change=estimate(-1.25, 0.5))
    for contexts, told in ((9, "only 9 contexts"), (10, "58.0 to 62.0")):
        rows = [searched("span"), drawn("top-p:0.9", choices=(changed, choice(VOTE, 62)))]
        save_comparison([replace(row, contexts=contexts) for row in rows], tmp_path)
        page = (tmp_path / "comparison.md").read_text()
        assert f"60.0 ({told})" in page
        assert ("Intervals are 95%" in page) == (" to 62.0)" in page) == (contexts == 10)


def test_other_paragraphs_tell_the_figures() -> None:
    rows = [
        searched("span", found=1.0, seconds=2468.0),
        drawn("top-p:0.9", found=0.5, seconds=123.4),
        drawn("top-k:40", choices=drawn("", 40.0).choices, found=0.75, seconds=1234.0),
    ]
    text = "\n".join(findings(rows))
    assert text.startswith(
        "1,234 questions on 300 contexts were answered in 3 ways, with up to 5 answers to each."
    )
    assert "span has exact match 50.1 (48.1 to 52.1) and F1 60.1 (58.1 to 62.1)." in text
    assert "All answers stand in the context with: span." in text
    assert "Fewest stand in the context with top-p:0.9: 50.0%." in text
    assert "from 0.100 seconds (top-p:0.9) to 2.000 (span), measured once." in text
    assert "of top-p:0.9 the one that scores highest has F1 80.1, 20.0 more than one sample" in text
    # Two of two samplers, each with its vote and its MBR, have no differences here.
    assert "differences were looked at" not in text


@given(comparisons())
def test_many_differences_are_counted(compared: list[Comparison]) -> None:
    """Five differences of each strategy that samples."""
    count = 5 * (len(compared) - 1)
    text = "\n".join(findings(compared))
    assert (f"{count} differences were looked at" in text) == (count >= 20)


def test_a_single_strategy_has_words_and_tables(tmp_path: Path) -> None:
    for row in (searched("greedy"), drawn("top-p:0.9"), drawn("top-k", found=None)):
        save_comparison([row], tmp_path)
        page = (tmp_path / "comparison.md").read_text()
        assert f"{row.strategy} has exact match 50.1 (48.1 to 52.1)" in page
        assert ("## By number of samples" in page) == row.draws


def test_tables_hold_every_choice_every_strategy_and_every_number_of_samples() -> None:
    change = estimate(-1.25, 0.5)
    plain = choice(ONE, 60, f1_change=change, exact_match_p=0.01234)
    rows = [searched("span"), drawn("top-p:0.9", choices=(plain, *drawn("").choices[1:]))]
    table = choices_table(rows)
    assert [row[:2] for row in table.rows] == [
        ("span", BEST),
        *(("top-p:0.9", name) for name in (ONE, VOTE, RISK, ORACLE)),
    ]
    assert table.rows[1][3:] == ("60.0 (58.0 to 62.0)", None, "-1.2 (-1.8 to -0.8)", 0.01234)
    assert "| 0.012 |" in table.to_markdown()
    assert variety_table(rows).rows == (
        ("span", 1, 0.9, None, None, None, None, None, 3.5, 0.1),
        ("top-p:0.9", 5, 0.9, 2.345, 0.5, 0.41, 0.52, 63.2, 17.5, 0.1),
    )
    assert [row[:2] for row in samples_table(rows).rows] == [("top-p:0.9", 1), ("top-p:0.9", 5)]


def test_files_hold_words_tables_plot_and_json(tmp_path: Path) -> None:
    rows = [searched("span"), drawn("top-p:0.9")]
    save_comparison(rows, tmp_path)
    page = (tmp_path / "comparison.md").read_text()
    assert all(paragraph in page for paragraph in findings(rows))
    (plot,) = re.findall(r"!\[.*\]\((.*)\)", page)
    assert (tmp_path / plot).read_bytes().startswith(b"\x89PNG")
    saved = json.loads((tmp_path / "comparison.json").read_text())
    assert saved == [json.loads(json.dumps(row.to_json())) for row in rows]


@pytest.mark.parametrize(
    ("low", "high", "sign"), [(0.1, 2, 1), (-2, -0.1, -1), (-1, 1, 0), (0, 1, 0)]
)
def test_the_sign_of_a_difference_is_that_of_its_whole_interval(
    low: float, high: float, sign: int
) -> None:
    assert Estimate(0.5, low, high).sign == sign


@given(comparisons())
def test_a_comparison_is_read_back_as_it_was_saved(
    tmp_path_factory: pytest.TempPathFactory, compared: list[Comparison]
) -> None:
    folder = tmp_path_factory.getbasetemp() / "read-back"
    folder.mkdir(exist_ok=True)
    write_json(folder / "comparison.json", [row.to_json() for row in compared])
    assert load_comparison(folder) == compared


def test_a_damaged_comparison_is_named(tmp_path: Path) -> None:
    assert load_comparison(tmp_path) == []
    (tmp_path / "comparison.json").write_text('[{"strategy": "span"}]')
    with pytest.raises(InputError, match=r"comparison\.json is not what this version"):
        load_comparison(tmp_path)
