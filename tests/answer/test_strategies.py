"""Parsing names of strategies."""

import re
from pathlib import Path

import pytest

from loraqa.answer.beam import BeamSearch
from loraqa.answer.decode import Greedy, Sampling
from loraqa.answer.filters import temperature, top_k, top_p
from loraqa.answer.span import SpanSearch
from loraqa.answer.strategies import (
    GRID,
    MAX_BEAMS,
    STRATEGIES,
    check_strategy,
    parse_strategy,
    strategy_names,
)
from loraqa.errors import InputError


def test_names_parse_to_strategies() -> None:
    assert parse_strategy("greedy") == Greedy()
    assert parse_strategy("span") == SpanSearch()
    assert parse_strategy("beam:7") == BeamSearch(7)
    assert parse_strategy("top-k:5") == Sampling("top-k:5", ((top_k, 5),))


def test_joined_filters_have_transformers_order() -> None:
    joined = parse_strategy("top-p:0.9 + top-k:50+temperature:0.5")
    assert joined == Sampling(
        "temperature:0.5+top-k:50+top-p:0.9",
        ((temperature, 0.5), (top_k, 50), (top_p, 0.9)),
    )


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("greedy", ["greedy"]),
        ("span,top-p:0.5|0.9, beam", ["span", "top-p:0.5", "top-p:0.9", "beam"]),
        (
            "temperature:0.5|1 + top-k:5|40",
            [f"temperature:{t}+top-k:{k}" for t in ("0.5", "1") for k in ("5", "40")],
        ),
        ("top-k:5,greedy,top-k:5|6,greedy", ["top-k:5", "greedy", "top-k:6"]),
        ("", [""]),
        ("greedy,,span", ["greedy", "", "span"]),
        ("top-k:|5", ["top-k:", "top-k:5"]),
    ],
)
def test_a_list_names_strategies_once_and_each_number(text: str, names: list[str]) -> None:
    assert strategy_names(text) == names


def test_the_grid_has_all_kinds_of_strategies_and_can_be_part_of_a_list() -> None:
    grid = strategy_names("grid")
    assert grid == strategy_names(GRID)
    assert {name.partition(":")[0] for name in grid} == {*STRATEGIES}
    assert [parse_strategy(name).name for name in grid] == grid
    assert strategy_names("greedy,grid,top-k:7") == [
        "greedy",
        *(name for name in grid if name != "greedy"),
        "top-k:7",
    ]


@pytest.mark.parametrize("name", STRATEGIES)
def test_every_name_round_trips(name: str) -> None:
    strategy = parse_strategy(name)
    assert strategy.name.startswith(name)
    assert parse_strategy(strategy.name) == strategy


@pytest.mark.parametrize("text", ["", "best", "Greedy", "top_p:0.9", "top-p:0.9+nucleus", "+"])
def test_unknown_names_list_those_that_exist(text: str) -> None:
    with pytest.raises(InputError, match="there are greedy, temperature, top-k.*beam, span"):
        parse_strategy(text)


@pytest.mark.parametrize(
    "text",
    [
        "temperature:0",
        "temperature:-1",
        "temperature:inf",
        "temperature:nan",
        "top-k:0",
        "top-k:2.5",
        "top-k:inf",
        "top-p:0",
        "top-p:1",
        "top-p:many",
        "top-p:",
        "min-p:0",
        "min-p:1.1",
        "typical:1",
        "beam:0",
        f"beam:{MAX_BEAMS + 1}",
        "beam:1e1",
        "beam:٤",
        "top-k:1_0",
        "top-k: 5",
        "top-k:100001",
        "top-p:0.99999",
        "top-p:0.00001",
        "temperature:100.1",
        "beam:x",
        "beam:",
    ],
)
def test_numbers_out_of_range_are_refused(text: str) -> None:
    name = text.partition(":")[0]
    with pytest.raises(InputError, match=f"{text}.* {name} takes .*as in {name}:"):
        parse_strategy(text)


@pytest.mark.parametrize("digits", ["9" * 30, f"0.{'3' * 30}", "0" * 30 + "1", "9" * 400_000])
@pytest.mark.parametrize("name", ["temperature", "top-k", "top-p", "min-p", "typical", "beam"])
def test_numbers_with_many_digits_are_refused_in_a_short_sentence(name: str, digits: str) -> None:
    with pytest.raises(InputError, match=f"{name}:{digits[:20]}.* is out of range") as refused:
        parse_strategy(f"{name}:{digits}")
    assert len(str(refused.value)) < 250


@pytest.mark.parametrize(
    "text", ["x" * 400_000, "+".join(["top-k:5"] * 50_000), f"span+top-k:{'0' * 6}" * 9999]
)
def test_messages_about_long_texts_are_short(text: str) -> None:
    with pytest.raises(InputError) as refused:
        parse_strategy(text)
    assert len(str(refused.value)) < 250


def test_every_number_within_the_bounds_stands_in_the_name() -> None:
    """The name identifies the strategy, so it must not be rounded."""
    for text in ("temperature:99.999", "top-k:100000", "top-k:99999", "top-p:0.0001"):
        assert parse_strategy(text).name == text
        assert parse_strategy(parse_strategy(text).name) == parse_strategy(text)


@pytest.mark.parametrize(
    ("text", "hint"), [("gredy", "greedy"), ("top_p:0.9", "top-p"), ("temprature", "temperature")]
)
def test_a_similar_name_is_suggested(text: str, hint: str) -> None:
    with pytest.raises(InputError, match=f"did you mean {hint}"):
        parse_strategy(text)


@pytest.mark.parametrize("text", ["best", "beam:0", "greedy+span", "top-p+top-p", "span:0"])
def test_checking_refuses_what_parsing_refuses(text: str) -> None:
    with pytest.raises(InputError) as parsed:
        parse_strategy(text)
    with pytest.raises(InputError) as checked:
        check_strategy(text)
    assert str(checked.value) == str(parsed.value)


@pytest.mark.parametrize("text", ["greedy:1", "greedy:"])
def test_numbers_after_strategies_without_one_are_refused(text: str) -> None:
    with pytest.raises(InputError, match="takes no number"):
        parse_strategy(text)


@pytest.mark.parametrize("text", ["greedy+top-k:5", "beam:2+span", "top-p:0.9+beam"])
def test_strategies_that_cannot_be_joined_are_refused(text: str) -> None:
    with pytest.raises(InputError, match="cannot be joined"):
        parse_strategy(text)


def test_a_filter_named_twice_is_refused() -> None:
    with pytest.raises(InputError, match="twice"):
        parse_strategy("top-p:0.9+top-p:0.5")


def test_the_names_in_the_guide_parse() -> None:
    guide = (Path(__file__).parents[2] / "docs" / "decoding.md").read_text(encoding="utf-8")
    known = "|".join(STRATEGIES)
    examples = re.findall(rf"`((?:{known})(?::[\d.]+)?(?:\+[^`]*)?)`", guide)
    assert {parse_strategy(example).name for example in examples} > {"span", "beam:4", "top-p:0.9"}
    for name in STRATEGIES:
        assert f"`{name}" in guide
