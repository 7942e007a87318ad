"""Choosing among windows and "no answer", against Bayes' rule written out."""

from math import exp, log

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loraqa.answer.windows import Found, Searched, Window, choose

TEXTS = ["salt", "the mill", "Ruth", "1203"]
# A window: how probable "no answer" and each text are, in parts of their sum.
WEIGHTS = st.lists(st.integers(1, 50), min_size=len(TEXTS) + 1, max_size=len(TEXTS) + 1)
# With how probable the window is, in parts of their sum.
READ = st.tuples(WEIGHTS, st.integers(1, 50))


def read(
    weights: list[int], hidden: float = 0.0, prior: float = 1.0
) -> tuple[Window, dict[str, float]]:
    """Return a window, and the probability of each text and of "" (no answer) in it.

    The search has met all texts, but for a share `hidden` of the last one. Before it is read, the
    window holds the answer with the probability `prior`, if any does.
    """
    none, *others = [weight / sum(weights) for weight in weights]
    among_answers = {text: p / (1 - none) for text, p in zip(TEXTS, others, strict=True)}
    last = TEXTS[-1]
    dropped = hidden * among_answers[last]
    met = {
        text.removeprefix("the ").lower(): p - dropped * (text == last)
        for text, p in among_answers.items()
    }
    found = [Found(text, log(p), 2, None, None) for text, p in among_answers.items()]
    best_first = sorted(found, key=lambda each: -each.log_probability)
    searched = Searched(met, dropped, 3, True)
    window = Window(log(none / (1 - none)), tuple(best_first), searched, log(prior))
    return window, {"": none, **dict(zip(TEXTS, others, strict=True))}


@given(st.lists(READ, min_size=1, max_size=4), st.sampled_from([0.0, 0.4]))
def test_answers_have_the_shares_that_bayes_rule_gives_them(
    drawn: list[tuple[list[int], int]], hidden: float
) -> None:
    """Suppose none of the windows holds the answer, or one does, each with its own chance."""
    parts = sum(part for _, part in drawn)
    priors = [part / parts for _, part in drawn]
    made = [read(w, hidden, prior) for (w, _), prior in zip(drawn, priors, strict=True)]
    windows, tables = zip(*made, strict=True)
    weighed = list(zip(priors, tables, strict=True))
    nowhere = exp(sum(log(table[""]) for table in tables))
    joint = {
        text: sum(q * table[text] * nowhere / table[""] for q, table in weighed) for text in TEXTS
    }
    total = nowhere + sum(joint.values())
    choice = choose("q", windows, len(TEXTS), draws=False, learned_no_answer=True)
    assert sorted(answer.text for answer in choice.answers) == sorted(TEXTS)
    for answer in [*choice.answers, choice.no_answer]:
        share = (joint[answer.text] if answer.text else nowhere) / total
        assert answer.probability_at_least is not None
        assert answer.probability_at_most is not None
        assert answer.probability_at_least - 1e-9 <= share <= answer.probability_at_most + 1e-9
        if not hidden:
            assert answer.probability_at_least == pytest.approx(share)
            assert answer.probability_at_most == pytest.approx(share)
        assert answer.paths == 3 * len(windows)
    odds = [max(q * table[text] / table[""] for q, table in weighed) for text in TEXTS]
    # Odds that differ by rounding alone are equal.
    assert odds[TEXTS.index(choice.answers[0].text)] == pytest.approx(max(odds))
    for answer in choice.answers:
        assert answer.no_answer_probability == pytest.approx(1 / (1 + max(odds)))


@given(st.lists(WEIGHTS, min_size=1, max_size=4))
def test_without_a_learned_no_answer_probabilities_are_compared(weights: list[list[int]]) -> None:
    """All windows are as probable before they are read."""
    windows, tables = zip(*map(read, weights), strict=True)
    choice = choose("q", windows, 1, draws=False, learned_no_answer=False)
    best = max(max(table[text] for text in TEXTS) for table in tables)
    assert exp(choice.answers[0].log_probability) == pytest.approx(best)
    total = sum(map(sum, (table.values() for table in tables)))
    same = sum(table[choice.answers[0].text] for table in tables)
    assert choice.answers[0].probability_at_least == pytest.approx(same / total)


@given(WEIGHTS, st.floats(0, 1))
def test_no_answer_comes_first_above_the_threshold(weights: list[int], threshold: float) -> None:
    window, table = read(weights)
    choice = choose("q", [window], 2, draws=False, learned_no_answer=True)
    none = table[""] / (table[""] + max(table[text] for text in TEXTS))
    texts = [answer.text for answer in choice.above(threshold)]
    if abs(none - threshold) > 1e-9:
        assert (texts[0] == "") == (none > threshold)
    assert [text for text in texts if text] == [answer.text for answer in choice.answers]
    assert choice.above(None) == choice.answers


def test_certainty_does_not_overflow() -> None:
    found = (Found("salt", -0.1, 2, 0, 4),)
    for none in (-900.0, 900.0):
        windows = [Window(none, found, Searched({"salt": 0.9}, 0.0, 1, True)), read([1] * 5)[0]]
        choice = choose("q", windows, 1, draws=False, learned_no_answer=True)
        for answer in [*choice.answers, choice.no_answer]:
            assert answer.probability_at_least is not None
            assert 0 <= answer.probability_at_least <= 1
            assert 0 <= answer.no_answer_probability <= 1


def test_a_window_without_spans_has_no_answer() -> None:
    choice = choose("q", [Window(-3.0, ())], 2, draws=False, learned_no_answer=False)
    assert choice.above(None) == [choice.no_answer]
    assert choice.no_answer.no_answer_probability == 1


def test_a_window_without_spans_stands_beside_others() -> None:
    window, table = read([3, 1, 4, 1, 5])
    for windows in ([Window(-3.0, ()), window], [window, Window(2.0, ())]):
        for learned_no_answer in (True, False):
            choice = choose("q", windows, 1, draws=False, learned_no_answer=learned_no_answer)
            best = max(TEXTS, key=lambda text: table[text])
            assert choice.answers[0].text == best
            assert choice.answers[0].probability_at_least is not None


def test_no_answer_is_not_told_twice() -> None:
    choice = choose("q", [Window(-3.0, ())], 2, draws=False, learned_no_answer=True)
    assert choice.above(0.5) == [choice.no_answer]


def test_of_draws_each_has_its_best_window() -> None:
    def drawn(none: float, *texts: tuple[str, float]) -> Window:
        return Window(none, tuple(Found(text, p, 2, None, None) for text, p in texts))

    windows = [drawn(2.0, ("a", -0.1), ("b", -0.1)), drawn(-2.0, ("c", -3.0), ("d", -9.0))]
    choice = choose("q", windows, 2, draws=True, learned_no_answer=True)
    assert [answer.text for answer in choice.answers] == ["c", "b"]


def test_a_window_survives_the_journal() -> None:
    for window in (read([3, 1, 4, 1, 5])[0], Window(-3.0, ())):
        assert Window.from_json(window.to_json()) == window
