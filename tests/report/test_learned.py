"""An analysis in words, tables, plots and files: what is said follows from the numbers."""

from dataclasses import replace
from io import StringIO
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from loraqa.analysis.learned import (
    KIND,
    LAYER,
    RANK,
    SCALE,
    Checkpoint,
    Compared,
    Effect,
    Effects,
    LayersOfKind,
    Learned,
    Likeness,
    Measured,
    Phi,
    Spectrum,
)
from loraqa.analysis.significance import Estimate
from loraqa.errors import InputError
from loraqa.files import read_json
from loraqa.report.learned import (
    FILE,
    findings,
    load_learned,
    save_learned,
    tables,
    updates_table,
)
from loraqa.report.learned_plots import figures
from loraqa.report.plots import to_svg
from loraqa.report.run import write_report


def update(name: str, *values: float) -> Measured:
    values = values or (4.0, 3.0)
    norm = sum(value**2 for value in values) ** 0.5
    return Measured(
        name,
        len(values),
        values,
        norm,
        stable_rank=norm**2 / values[0] ** 2 if norm else 0.0,
        effective_rank=1.5 if norm else 0.0,
        base_norm=50.0,
        base_spectral_norm=20.0,
        directions=2 if norm else 0,
        in_own=0.5 if norm else 0.0,
        in_base=25.0 if norm else 0.0,
        in_random=0.25 if norm else 0.0,
    )


UPDATES = tuple(update(f"model.h.{layer}.{kind}") for layer in (0, 1) for kind in ("q", "up"))


def effect(change: str, value: int | float | str, lost: float, width: float = 1.0) -> Effect:
    f1, loss = 60 - lost, Estimate(lost, lost - width, lost + width)
    score = Estimate(f1, f1 - 3, f1 + 3)
    return Effect(change, value, score, score, loss, loss)


EFFECTS = Effects(
    "dev.json",
    "greedy",
    200,
    40,
    (
        *(effect(SCALE, factor, 50 * abs(1 - factor)) for factor in (0.0, 0.5, 1.0, 2.0)),
        *(effect(RANK, rank, lost) for rank, lost in ((1, 8.0), (2, 0.2))),
        *(effect(LAYER, layer, lost) for layer, lost in ((0, 12.5), (1, -2.5))),
        *(effect(KIND, kind, lost) for kind, lost in (("q", 0.5), ("up", 5.0))),
    ),
)
LIKENESS = Likeness("model.h.0.q", Phi(0.9, 0.1), Phi(0.75, 0.1), Phi(0.5, 0.05))
EVERYTHING = Learned(
    "runs/mine",
    "gpt2",
    UPDATES,
    (LayersOfKind("q", (0, 1), ((1.0, 0.3), (0.3, 1.0)), ((1.0, 0.2), (0.2, 1.0)), 0.1, 0.05),),
    tuple(
        Checkpoint(
            step,
            tuple(Spectrum(u.name, 2, (size, 0.0), size, 1.0, 1.0) for u in UPDATES),
            (LIKENESS,),
        )
        for step, size in ((10, 1.0), (20, 4.0))
    ),
    (Compared("runs/<b>other</b>", (2, 8), (LIKENESS,), *[((0.9, 0.8), (0.7, 0.6))] * 3),),
    EFFECTS,
)


def test_findings_name_the_numbers() -> None:
    told = " ".join(findings(EVERYTHING))
    for words in (
        "The adapter changes 4 matrices, with rank 2.",
        "‖ΔW‖ is 10.00% of ‖W‖ on average",
        "The first direction alone holds 64% of ‖ΔW‖² on average.",
        "W has 2 times the norm that it has in random directions, and 2.0% of what",
        "ΔW is 10 times as large as W",
        "have φ = 0.300 on average, and random ones 0.100. Most alike are q of layers 0 and 1: 0.3",
        "From step 10 to step 20, ‖ΔW‖/‖W‖ went from 2.00% to 8.00%",
        "runs/<b>other</b> (rank 2 to 8) shares 1 matrix with the adapter.",
        "on average 0.900 (0.100) for A, 0.750 (0.100) for the inputs, 0.500 (0.050) for the",
        "the adapter exact match 60.0 (57.0 to 63.0)",
        "Switching off one layer loses F1: layer 0 12.5 (11.5 to 13.5).",
        "Switching off one layer gains F1: layer 1 2.5 (1.5 to 3.5).",
        "Switching off one kind of matrix loses F1: up 5.0 (4.0 to 6.0).",
        "For 1 of 2 kinds no change of F1 is seen",
        "Cut to a lower rank, the updates lose F1: rank 1 8.0 (7.0 to 9.0).",
        "No loss is seen at rank 2.",
        "Of all factors, 1 scores highest, with F1 60.0 (57.0 to 63.0).",
        "No factor is better than 1 by more than its interval.",
    ):
        assert words in told, words


def test_few_contexts_allow_no_claims() -> None:
    told = findings(replace(EVERYTHING, effects=replace(EFFECTS, contexts=3)))
    assert told[-1].startswith("3 contexts are too few for a claim")
    assert not any("Switching off" in paragraph for paragraph in told)


def test_an_adapter_that_learned_nothing() -> None:
    nothing = Learned("new", "gpt2", tuple(update(u.name, 0.0, 0.0) for u in UPDATES))
    told = " ".join(findings(nothing))
    assert "4 matrices did not change, such as model.h.0.q." in told
    assert "times as large" not in told
    for figure, _ in figures(nothing).values():
        to_svg(figure)


def test_a_single_matrix_outside_of_layers() -> None:
    alone = Learned("one", "gpt2", (update("lm_head"),))
    first, *_ = findings(alone)
    assert first == "The adapter changes 1 matrix, with rank 2. ‖ΔW‖ is 10.00% of ‖W‖."
    for figure, _ in figures(alone).values():
        to_svg(figure)


@given(
    st.lists(st.lists(st.floats(0, 9), min_size=1, max_size=4), min_size=1, max_size=6),
    st.integers(1, 3),
)
def test_any_adapter_is_told_and_drawn(values: list[list[float]], per_layer: int) -> None:
    updates = [
        update(f"h.{number // per_layer}.kind{number % per_layer}", *sorted(each, reverse=True))
        for number, each in enumerate(values)
    ]
    learned = Learned("any", "gpt2", tuple(updates))
    assert all(
        "nan" not in paragraph and "None" not in paragraph for paragraph in findings(learned)
    )
    assert [len(table.rows) for table in tables(learned)] == [len({u.kind for u in updates})]


def test_tables_show_every_part() -> None:
    kinds, checkpoints, others, effects = tables(EVERYTHING)
    assert [row[0] for row in kinds.rows] == ["q", "up"]
    assert [row[0] for row in checkpoints.rows] == [10, 20]
    phis = ("0.900 (0.100)", "0.750 (0.100)", "0.500 (0.050)")
    assert others.rows == (("runs/<b>other</b>", "2 to 8", *phis),)
    assert ("layer 1 off", 62.5, 62.5, "-2.5 (-3.5 to -1.5)", "-2.5 (-3.5 to -1.5)") in effects.rows
    assert updates_table(UPDATES).title == "Updates in model.h"
    assert [row[0] for row in updates_table(UPDATES).rows] == ["0.q", "0.up", "1.q", "1.up"]


def test_what_is_saved_can_be_read_again(tmp_path: Path) -> None:
    save_learned(EVERYTHING, tmp_path)
    assert load_learned(tmp_path) == EVERYTHING
    assert read_json(tmp_path / FILE)["updates"][0]["amplification"] == 10
    page = (tmp_path / "analysis.md").read_text()
    for name in figures(EVERYTHING):
        assert f"]({name}.png)" in page
        assert (tmp_path / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    assert load_learned(tmp_path / "nowhere") is None


def test_another_analysis_leaves_no_plots_of_the_former(tmp_path: Path) -> None:
    save_learned(EVERYTHING, tmp_path)
    less = replace(EVERYTHING, others=(), effects=None)
    save_learned(less, tmp_path)
    assert {path.stem for path in tmp_path.glob("*.png")} == {*figures(less)}


@pytest.mark.parametrize("kind", ["self_attn.q_proj", "attn.c_attn[q]"])
def test_tables_fit_into_80_columns(kind: str) -> None:
    updates = tuple(update(f"model.h.{layer}.{kind}", 123.4, 12.3) for layer in range(2))
    other = replace(EVERYTHING.others[0], name="/home/someone/runs/of/a/long/name/adapter")
    for table in tables(replace(EVERYTHING, updates=updates, others=(other,))):
        wide, narrow = (
            Console(file=StringIO(), width=width, color_system=None) for width in (200, 80)
        )
        for console in (wide, narrow):
            console.print(table.to_rich())
        lines = [
            [line.rstrip() for line in console.file.getvalue().splitlines()]
            for console in (wide, narrow)
        ]
        assert lines[0] == lines[1]


def test_a_damaged_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / FILE).write_text("{}")
    with pytest.raises(InputError, match="analyze again"):
        load_learned(tmp_path)


def test_the_report_shows_the_analysis(tmp_path: Path) -> None:
    save_learned(EVERYTHING, tmp_path / "analysis")
    page = write_report(tmp_path).read_text(encoding="utf-8")
    assert page.count("<figure>") == len(figures(EVERYTHING))
    assert "runs/&lt;b&gt;other&lt;/b&gt;" in page
    assert "<b>other" not in page
