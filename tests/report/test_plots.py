"""Plots: figures show the given data, and files are complete."""

import itertools
import re
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.text import Text
from PIL import Image
from tests.report.comparisons import drawn, searched

from loraqa.answer.compare import Comparison
from loraqa.report import learned_plots, plots

STEPS = [
    {"kind": "train", "step": step, "loss": 5 / step, "learning_rate": step * 1e-4}
    for step in range(1, 101)
]
EVALUATIONS = [
    {"kind": "evaluation", "step": 50, "exact_match": 10.0, "f1": 20.0},
    {"kind": "evaluation", "step": 100, "exact_match": 30.0, "f1": 45.0},
]
STRATEGIES = [
    searched("greedy", 91.0),
    drawn("$top_p$ 0.9", 88.0, distinct=1.5),
    drawn("temperature", 80.0, distinct=2.5),
]
SPECTRA = {
    f"base.h.{layer}.{kind}": [3.0 + layer, 1.0, 0.0]
    for layer in (0, 10, 2)
    for kind in ("attn.c_attn", "mlp.c_fc")
}
CONFIDENCES = {
    "probability": ([0.1, 0.15, 0.6, 0.9], [False, True, True, True]),
    "confidence": ([0.3, 0.35, 0.7, 0.95], [False, True, True, True]),
}


def every_figure() -> dict[str, Figure]:
    return {
        "training": plots.training_curves(STEPS + EVALUATIONS),
        "reliability": plots.reliability_diagram(CONFIDENCES),
        "risk": plots.risk_against_coverage(CONFIDENCES),
        "quality": plots.quality_against_diversity(STRATEGIES),
        "spectra": learned_plots.singular_values(SPECTRA),
    }


def test_curves_show_every_step_and_evaluation() -> None:
    loss, scores, rate = plots.training_curves(STEPS + EVALUATIONS).axes
    assert loss.lines[0].get_xydata().tolist() == [[r["step"], r["loss"]] for r in STEPS]
    drawn = {line.get_label(): line.get_xydata().tolist() for line in scores.lines}
    assert drawn == {"F1": [[50, 20], [100, 45]], "exact match": [[50, 10], [100, 30]]}
    assert rate.lines[0].get_ydata()[-1] == pytest.approx(0.01)


def test_curves_without_evaluations_have_no_empty_panel() -> None:
    assert [axes.get_title("left") for axes in plots.training_curves(STEPS).axes] == [
        "Training loss",
        "Learning rate",
    ]


def test_running_mean_is_a_centred_mean() -> None:
    mean = plots.training_curves(STEPS).axes[0].lines[1].get_ydata()
    losses = np.array([record["loss"] for record in STEPS])
    # A twentieth of 100 values: the middle one and two on each side.
    inside = np.convolve(losses, np.ones(5) / 5, mode="valid")
    np.testing.assert_allclose(mean[2:-2], inside)
    assert mean[0] == pytest.approx(losses[:3].mean())
    assert len(mean) == 100


def test_reliability_is_right_answers_against_confidence() -> None:
    figure = plots.reliability_diagram(CONFIDENCES)
    drawn = {line.get_label(): line.get_xydata() for line in figure.axes[0].lines}
    assert list(drawn) == ["fits exactly", "probability", "confidence"]
    np.testing.assert_allclose(drawn["probability"], [[0.125, 0.5], [0.6, 1], [0.9, 1]])


def test_risk_rises_where_less_sure_answers_are_wrong() -> None:
    figure = plots.risk_against_coverage(CONFIDENCES)
    for line in figure.axes[0].lines:
        assert line.get_xydata().tolist() == [[0.25, 0], [0.5, 0], [0.75, 0], [1, 0.25]]


def markers(figure: Figure) -> list[tuple[tuple[float, float], float, str]]:
    """Return place, size and shape of each marker."""
    lines = [line for line in figure.axes[0].lines if line.get_marker() != "None"]
    return [
        (tuple(line.get_xydata()[0]), line.get_markersize(), line.get_marker()) for line in lines
    ]


def test_strategies_are_named_at_their_points() -> None:
    figure = plots.quality_against_diversity(STRATEGIES)
    named = {label.get_text(): label.xy for label in figure.axes[0].texts}
    assert named == {"temperature": (2.5, 80), "$top_p$ 0.9": (1.5, 88), "greedy": (1, 91)}
    assert [place for place, _, _ in markers(figure)] == list(named.values())


def test_intervals_are_drawn_at_their_points() -> None:
    lines = plots.quality_against_diversity(STRATEGIES).axes[0].lines
    drawn_ends = [line.get_xydata().tolist() for line in lines if len(line.get_xdata()) == 2]
    assert [[1, 89], [1, 93]] in drawn_ends
    assert [[2.5, 78], [2.5, 82]] in drawn_ends


def test_fewer_than_ten_contexts_have_no_interval() -> None:
    few = [replace(row, contexts=9) for row in STRATEGIES]
    lines = plots.quality_against_diversity(few).axes[0].lines
    ends = [line.get_xydata().tolist() for line in lines]
    assert [[1, 89], [1, 93]] not in ends


SAME = [
    *(searched(name, 97.0) for name in ("span", "beam:4", "greedy")),
    *(drawn(name, 95.0, distinct=1.1) for name in ("temperature:1", "top-k:40")),
    drawn("min-p:0.05", 95.001, distinct=1.1001),
    drawn("top-p:0.5", 97.4, distinct=1.001),
    drawn("top-p:0.9", 96.0, distinct=1.05),
]


def test_points_that_lie_on_one_another_are_rings_of_different_sizes() -> None:
    drawn_at = markers(plots.quality_against_diversity(SAME))
    sizes = {}
    for place, size, _ in drawn_at:
        sizes.setdefault(place, []).append(size)
    assert sizes[1, 97] == [7, 13, 19]
    assert sizes[1.1, 95] == [7, 13]
    # Nobody could see that it is not at the same place.
    assert sizes[1.1001, 95.001] == [19]
    assert sizes[1.05, 96] == sizes[1.001, 97.4] == [7]


MANY = [drawn(f"temperature:{n}", 80.0 - n, distinct=1 + n / 10) for n in range(40)]


@pytest.mark.parametrize("rows", [SAME, STRATEGIES, [searched("greedy")], MANY])
def test_names_of_strategies_do_not_overlap(rows: list[Comparison]) -> None:
    figure = plots.quality_against_diversity(rows)
    plots.to_svg(figure)
    # An annotation's own extent includes its line to the point.
    boxes = [Text.get_window_extent(label) for label in figure.axes[0].texts]
    heights = sorted((box.y0, box.y1) for box in boxes)
    assert len(boxes) == len(rows)
    assert all(upper[0] >= lower[1] for lower, upper in itertools.pairwise(heights))


@pytest.mark.parametrize(("rows", "ticks"), [(SAME, ["1", "1.1", "1.2"]), (MANY, ["1", "5"])])
def test_the_axis_of_variety_is_numbered_as_far_as_it_goes(
    rows: list[Comparison], ticks: list[str]
) -> None:
    figure = plots.quality_against_diversity(rows)
    plots.to_svg(figure)
    axes = figure.axes[0]
    numbered = [label.get_text() for label in axes.get_xticklabels()]
    assert (numbered[0], numbered[-1]) == (ticks[0], ticks[-1])
    low, high = axes.get_xlim()
    assert all(low < row.distinct < high for row in rows)


def test_strategies_of_a_kind_share_shape_and_are_joined() -> None:
    figure = plots.quality_against_diversity(SAME)
    shapes = {place: shape for place, _, shape in markers(figure)}
    assert shapes[1.001, 97.4] == shapes[1.05, 96]
    joining = [line for line in figure.axes[0].lines if line.get_linestyle() == ":"]
    assert [line.get_xydata().tolist() for line in joining] == [[[1.001, 97.4], [1.05, 96]]]


def test_spectra_have_a_panel_per_kind_sorted_by_layer() -> None:
    attention, mlp, scale = learned_plots.singular_values(SPECTRA).axes
    assert [axes.get_title("left") for axes in (attention, mlp)] == ["attn.c_attn", "mlp.c_fc"]
    assert [label.get_text() for label in attention.get_yticklabels()] == ["0", "2", "10"]
    mesh = attention.collections[0]
    assert mesh.get_array().tolist() == [[3, 1, 0], [5, 1, 0], [13, 1, 0]]
    assert scale.get_ylim() == (0, 13)


@pytest.mark.parametrize("kinds", range(1, 8))
def test_spectra_of_any_number_of_kinds_have_a_panel_each(kinds: int) -> None:
    """GPT-2 has up to four kinds of adapted modules, Llama, Qwen and Mistral up to seven."""
    spectra = {f"h.{layer}.kind{kind}": [2.0, 1.0] for layer in (0, 1) for kind in range(kinds)}
    figure = learned_plots.singular_values(spectra)
    plots.to_svg(figure)
    *panels, scale = figure.axes
    assert [axes.get_title("left") for axes in panels] == [f"kind{n}" for n in range(kinds)]
    assert scale.get_ylim() == (0, 2)


def test_spectra_may_have_unequal_ranks_and_names_without_a_layer() -> None:
    figure = learned_plots.singular_values({"lm_head": [1.0], "h.0.q": [2.0, 1.0], "h.1.q": [2.0]})
    assert [axes.get_title("left") for axes in figure.axes[:2]] == ["lm_head", "q"]
    assert figure.axes[1].collections[0].get_array().tolist() == [[2, 1], [2, None]]


def test_zero_spectra_of_an_untrained_adapter_are_plotted() -> None:
    plots.to_svg(learned_plots.singular_values({"h.0.q": [0.0, 0.0]}))


@pytest.mark.parametrize("name", list(every_figure()))
def test_svg_is_well_formed_and_self_contained(name: str) -> None:
    svg = plots.to_svg(every_figure()[name])
    root = ElementTree.fromstring(svg)
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    assert "currentColor" in svg
    assert plots.INK not in svg
    outside = re.findall(r"https?://[^\"'\s<]+", re.sub(r'xmlns(:\w+)?="[^"]+"', "", svg))
    assert outside == []
    ids = re.findall(r'\bid="([^"]+)"', svg)
    for target in re.findall(r'(?:href="#|url\(#)([^")]+)', svg):
        assert target in ids


def test_equal_figures_give_equal_svg() -> None:
    first, second = every_figure(), every_figure()
    for name in first:
        assert plots.to_svg(first[name]) == plots.to_svg(second[name])


def test_dollar_signs_in_names_start_no_formula() -> None:
    assert "$top_p$ 0.9" in plots.to_svg(plots.quality_against_diversity(STRATEGIES))


def test_an_id_means_the_same_in_every_figure_of_a_page() -> None:
    meanings: dict[str, str] = {}
    for figure in every_figure().values():
        for element in ElementTree.fromstring(plots.to_svg(figure)).iter():
            if mark := element.get("id"):
                meaning = ElementTree.tostring(element, encoding="unicode")
                assert meanings.setdefault(mark, meaning) == meaning
    assert meanings


def test_png_has_an_opaque_white_background(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "plot.png"
    plots.save_png(every_figure()["training"], path)
    with Image.open(path) as image:
        assert image.width == 6 * 160
        assert image.convert("RGBA").getpixel((0, 0)) == (255, 255, 255, 255)
        assert len(image.convert("RGB").getcolors(100_000)) > 10
    assert [file.name for file in path.parent.iterdir()] == ["plot.png"]


def test_figures_leave_matplotlib_settings_as_they_were() -> None:
    import matplotlib

    before = dict(matplotlib.rcParams)
    plots.to_svg(every_figure()["quality"])
    assert dict(matplotlib.rcParams) == before
