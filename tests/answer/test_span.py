"""The span search against brute force over all spans."""

import re
import string
from dataclasses import replace
from functools import cache, partial
from itertools import accumulate, combinations
from math import exp, inf
from pathlib import Path
from threading import Event
from typing import Any

import pytest
import regex
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.answer.conftest import PASSAGES, answers_only, prompts_of, stopping_model
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from loraqa.answer.answered import Answered
from loraqa.answer.decode import Prompts, Rules, Written, split_no_answer
from loraqa.answer.span import SpanSearch, Trie, _Forest, _Search, _spans
from loraqa.answer.windows import Chosen, Found, Window, choose
from loraqa.model.runner import PaddedRunner, TreeRunner
from loraqa.model.stop import ComputationStoppedError, stopping
from loraqa.prompt.segments import SegmentTokenizer
from loraqa.prompt.template import Template
from loraqa.prompt.tree import Tree
from loraqa.squad import normalize_answer, read_passages


def every_span(context: str, rules: Rules) -> dict[str, list[int]]:
    """Return the tokens of each text that starts and ends at a word or mark and is short enough.

    Texts of punctuation alone are left out.
    """
    marks = [match.span() for match in re.finditer(r"\w+|[^\w\s]", context)]
    texts = {context[a:d] for i, (a, _) in enumerate(marks) for _, d in marks[i:]}
    texts = {text for text in texts if set(text) - set(string.punctuation + string.whitespace)}
    encoded = {text: rules.tokenizer.encode([f" {text}"])[0].ids for text in sorted(texts)}
    return {text: ids for text, ids in encoded.items() if len(ids) < rules.max_answer_tokens}


@cache
def brute_force(
    kind: str, prompt: tuple[int, ...], answers: tuple[tuple[int, ...], ...]
) -> list[float]:
    """Return the log-probability of each answer and eos after the prompt, computed one by one."""
    model = stopping_model(kind)
    scores = []
    for ids in answers:
        row = torch.tensor([[*prompt, *ids, 0]])
        with torch.no_grad():
            log_probs = model(row).logits[0, len(prompt) - 1 : -1].log_softmax(dim=-1)
        scores.append(float(log_probs.gather(1, row[0, len(prompt) :, None]).sum()))
    return scores


def best_of_all(kind: str, prompts: Prompts) -> list[tuple[str, tuple[int, ...], float]]:
    """Return the best text of each prompt, its tokens and log-probability, by brute force."""
    found = []
    for tree, branch, context in prompts.rows():
        answers = every_span(context, prompts.rules)
        tokens = tuple(map(tuple, answers.values()))
        scores = brute_force(kind, (*tree.trunk.tolist(), *branch.prompt.tolist()), tokens)
        score, text = max(zip(scores, answers, strict=True))
        found.append((text, (*answers[text], 0), score))
    return found


@pytest.mark.parametrize("kind", ["gpt2", "qwen2"])
@pytest.mark.parametrize("path", [TreeRunner, PaddedRunner])
@pytest.mark.parametrize("rows", [1, 256])
def test_equals_brute_force(
    kind: str, path: Any, rows: int, trees: list[Tree], rules: Rules
) -> None:
    prompts = prompts_of(path(stopping_model(kind)), trees, rules)
    found = [written for (written,) in SpanSearch(at_once=rows).write(prompts)]
    best = best_of_all(kind, prompts)
    for written, (text, tokens, score), context in zip(
        found, best, [context for _, _, context in prompts.rows()], strict=True
    ):
        assert written.tokens == tokens
        assert written.log_probability == pytest.approx(score, abs=1e-4)
        assert written.place == (context.index(text), context.index(text) + len(text))


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_the_n_best_and_their_shares_equal_brute_force(
    kind: str, trees: list[Tree], rules: Rules
) -> None:
    asked = prompts_of(TreeRunner(stopping_model(kind)), trees, rules, answers=5)
    prompts = answers_only(asked)
    rows = zip(prompts.rows(), SpanSearch().write(prompts), prompts.no_answer, strict=True)
    for (tree, branch, context), written, odds in rows:
        spans = every_span(context, rules)
        prompt = (*tree.trunk.tolist(), *branch.prompt.tolist())
        *scores, none = brute_force(kind, prompt, (*map(tuple, spans.values()), ()))
        answers: dict[str, list[tuple[float, str]]] = {}
        for text, score in zip(spans, scores, strict=True):
            answers.setdefault(normalize_answer(text) or text, []).append((score, text))
        best = sorted(map(max, answers.values()), reverse=True)[:5]
        total = sum(exp(score) for score in [*scores, none])
        found = chosen(context, odds, written)
        assert [answer.log_probability for answer in found.answers] == pytest.approx(
            [score for score, _ in best], abs=1e-4
        )
        assert found.no_answer.log_probability == pytest.approx(none, abs=1e-4)
        for answer, (_, text) in zip(found.answers, best, strict=True):
            assert (answer.text, context[answer.start : answer.end]) == (text, text)
            share = sum(exp(s) for s, _ in answers[normalize_answer(text) or text]) / total
            assert_within_bounds(share, answer)
        assert_within_bounds(exp(none) / total, found.no_answer)
        against_best = exp(none) / (exp(none) + exp(best[0][0]))
        assert found.no_answer.no_answer_probability == pytest.approx(against_best, rel=1e-3)


@pytest.mark.parametrize(
    ("context", "answers"),
    [
        ("Stop... now!?", {"Stop", "Stop.", "Stop..", "Stop...", "... now!"}),
        ("($5) — a + b", {"($5", "$5)", "5", "—", ") —", "a", "a +", "+ b"}),
        (".", set()),
        ("?! … ...", {"…", "?! … ..."}),
    ],
)
def test_punctuation_alone_is_no_answer(context: str, answers: set[str], rules: Rules) -> None:
    """As SQuAD normalizes it, it reads as nothing; articles and other symbols are answers."""
    spans = {context[slice(*span.place)] for span in _spans(context, (0, len(context)), rules)}
    assert spans >= answers
    assert all(re.search(r"\w|…|—", span) for span in spans)
    assert spans == set(every_span(context, rules))


def chosen(context: str, no_answer: float, written: list[Written]) -> Chosen:
    """Choose among the answers of a single window."""
    found = [
        Found(context[slice(*w.place)], w.log_probability, len(w.tokens), *w.place)
        for w in written
        if w.place
    ]
    window = Window(no_answer, tuple(found), written[0].searched)
    return choose("q", [window], len(found), draws=False, learned_no_answer=True)


def assert_within_bounds(share: float, answer: Answered) -> None:
    least, most = answer.probability_at_least, answer.probability_at_most
    assert least is not None
    assert most is not None
    assert 0 <= least <= most <= 1 + 1e-6
    assert least - 1e-4 <= share <= most + 1e-4


def test_few_prefixes_are_computed_and_at_most_at_once_together(
    trees: list[Tree], rules: Rules
) -> None:
    runner = TreeRunner(stopping_model("gpt2"))
    prompts = prompts_of(runner, trees, rules)
    widths: list[int] = []
    runner.model.register_forward_pre_hook(
        lambda _module, _args, options: widths.append(options["input_ids"].shape[1]),
        with_kwargs=True,
    )
    SpanSearch(at_once=8).write(prompts)
    prefixes = [
        len({tuple(ids[:n]) for ids in every_span(c, rules).values() for n in range(1, 12)})
        for _, _, c in prompts.rows()
    ]
    assert max(widths) <= 8
    assert sum(widths) < sum(prefixes) / 3


def test_spans_lie_in_their_window(trees: list[Tree], rules: Rules) -> None:
    tree = replace(trees[0], window=(30, 60))
    prompts = prompts_of(TreeRunner(stopping_model("gpt2")), [tree], rules)
    for (written,) in SpanSearch().write(prompts):
        assert written.place is not None
        assert 30 <= written.place[0] < written.place[1] <= 60


def test_finding_spans_stops_although_no_model_is_run(trees: list[Tree], rules: Rules) -> None:
    stop = Event()
    stop.set()
    context = PASSAGES[trees[0].passage].context
    with stopping(torch.nn.Identity(), stop), pytest.raises(ComputationStoppedError):
        _spans(context, trees[0].window, rules)


def test_there_is_no_answer_if_all_spans_are_too_long(trees: list[Tree], rules: Rules) -> None:
    rules = replace(rules, max_answer_tokens=1)
    prompts = answers_only(prompts_of(TreeRunner(stopping_model("gpt2")), trees, rules))
    assert SpanSearch().write(prompts) == [[] for _ in prompts.no_answer]


def test_nearly_all_of_the_annotators_answers_are_spans(shared: Path) -> None:
    tokenizer = SegmentTokenizer.from_transformers(AutoTokenizer.from_pretrained(shared / "gpt2"))
    rules = Rules(tokenizer, Template(), max_answer_tokens=32)
    found = []
    for passage in read_passages(shared / "data" / "squad1-dev.json").passages[::200]:
        spans = _spans(passage.context, (0, len(passage.context)), rules)
        texts = {passage.context[slice(*span.place)] for span in spans}
        answers = [answer for question in passage.questions for answer in question.answers]
        found += [answer.text in texts for answer in answers]
    assert sum(found) > 0.99 * len(found)


CAPITAL = "北京是中国的首都（人口2100万人）。 서울에서 GPU..."


@pytest.fixture(scope="module")
def merging_tokenizer() -> SegmentTokenizer:
    """A tokenizer whose tokens span many characters and marks of `CAPITAL`."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    texts = ["Context: In 1066, a b. Question: Who? Answer: William", f" {CAPITAL}"]
    tokenizer.train_from_iterator(
        texts * 9, trainers.BpeTrainer(vocab_size=400, initial_alphabet=alphabet)
    )
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|endoftext|>")
    return SegmentTokenizer.from_transformers(fast)


@pytest.mark.parametrize("most", [2, 3, 12, 40])
def test_spans_start_and_end_at_any_character_in_unspaced_scripts(
    most: int, segments: SegmentTokenizer, merging_tokenizer: SegmentTokenizer
) -> None:
    inside_words = {
        CAPITAL.index(word) + n for word in ("2100", "GPU") for n in range(1, len(word))
    }
    cuts = [n for n in range(len(CAPITAL) + 1) if n not in inside_words]
    texts = {CAPITAL[i:j] for i, j in combinations(cuts, 2)}
    # ASCII punctuation alone is no answer.
    texts = {text for text in texts if text.strip(string.punctuation)}
    for tokenizer in (segments, merging_tokenizer):
        rules = Rules(tokenizer, Template(), most)
        expected = {
            text
            for text in texts
            if text == text.strip() and 0 < len(tokenizer.encode([f" {text}"])[0].ids) < most
        }
        spans = _spans(f"A. {CAPITAL} B.", (3, 3 + len(CAPITAL)), rules)
        assert {f"A. {CAPITAL} B."[slice(*span.place)] for span in spans} == expected
    assert CAPITAL in expected or most < 12


# A sentence, and answers that people would mark in it.
SENTENCES = [
    ("กรุงเทพมหานครเป็นเมืองหลวงของประเทศไทย", ["กรุงเทพมหานคร", "เมืองหลวง", "ประเทศไทย", "ไทย"]),
    ("ວຽງຈັນເປັນນະຄອນຫຼວງຂອງປະເທດລາວ", ["ວຽງຈັນ", "ນະຄອນຫຼວງ", "ລາວ"]),
    ("ភ្នំពេញជារាជធានីរបស់ប្រទេសកម្ពុជា", ["ភ្នំពេញ", "រាជធានី", "កម្ពុជា"]),
    ("နေပြည်တော်သည်မြန်မာနိုင်ငံ၏မြို့တော်ဖြစ်သည်။", ["နေပြည်တော်", "မြန်မာ", "မြို့တော်"]),
    ("東京タワーは東京都港区にある電波塔である。", ["東京", "タワー", "港区", "電波塔"]),
    ("北京是中国的首都。", ["北京", "中国", "首都"]),
    ("서울은 대한민국의 수도이다.", ["서울", "대한민국", "수도"]),
    ("भारत की राजधानी नई दिल्ली है।", ["भारत", "नई दिल्ली", "राजधानी"]),
]


@pytest.mark.parametrize(("context", "answers"), SENTENCES)
def test_answers_in_every_script_are_spans_and_no_span_cuts_a_grapheme(
    context: str, answers: list[str], segments: SegmentTokenizer
) -> None:
    rules = Rules(segments, Template(), max_answer_tokens=200)
    spans = {span.place for span in _spans(context, (0, len(context)), rules)}
    assert set(answers) <= {context[slice(*place)] for place in spans}
    edges = {0, *accumulate(map(len, regex.findall(r"\X", context)))}
    assert {offset for place in spans for offset in place} <= edges


@given(st.lists(st.lists(st.integers(0, 3), max_size=4), max_size=12))
def test_a_trie_has_a_node_for_each_prefix(sequences: list[list[int]]) -> None:
    trie = Trie.of(sequences)
    prefixes: dict[int, tuple[int, ...]] = {0: ()}
    for node in range(len(trie.tokens)):
        for child in range(trie.children[node], trie.children[node + 1]):
            prefixes[child] = (*prefixes[node], int(trie.tokens[child]))
    expected = {tuple(ids[:n]) for ids in sequences for n in range(len(ids) + 1)} | {()}
    assert sorted(prefixes.values()) == sorted(expected)
    for node, prefix in prefixes.items():
        first = sequences.index(list(prefix)) if list(prefix) in sequences else -1
        assert trie.ending[node] == first


class Oracle:
    """A session whose logits are a fixed, uneven function of the previous tokens."""

    def __init__(self, rows: list[tuple[int, ...]]) -> None:
        self.rows = rows

    def logits(self) -> torch.Tensor:
        seeds = [sum(5**n * (token + 1) for n, token in enumerate(row)) for row in self.rows]
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        return torch.stack([6 * torch.rand(5, generator=generator) for generator in generators])

    def advance(self, tokens: torch.Tensor) -> torch.Tensor:
        self.rows = [(*row, token) for row, token in zip(self.rows, tokens.tolist(), strict=True)]
        return self.logits()

    def fork(self, rows: torch.Tensor) -> "Oracle":
        return Oracle([self.rows[row] for row in rows.tolist()])


SEQUENCES = st.lists(st.lists(st.integers(0, 3), min_size=1, max_size=6), min_size=1, max_size=30)


def reading(sequences: list[list[int]], index: int) -> str:
    """Let some sequences read the same."""
    return str(sum(sequences[index]) % 5)


def every_answer(prompt: tuple[int, ...], sequences: list[list[int]]) -> dict[str, list[float]]:
    """Return the probabilities of all different sequences, by how they read; "" is no answer."""
    answers = {"": [float(Oracle([prompt]).logits().softmax(dim=-1)[0, 4])]}
    for index, ids in enumerate(sequences):
        if ids not in sequences[:index]:
            steps = Oracle([(*prompt, *ids[:n]) for n in range(len(ids) + 1)]).logits()
            log_probs = steps.log_softmax(dim=-1).gather(1, torch.tensor([[*ids, 4]]).T)
            answers.setdefault(reading(sequences, index), []).append(float(log_probs.sum().exp()))
    return answers


def search_of(
    choices: list[list[list[int]]],
    branches: int,
    count: int,
    rows: int,
    most_paths: float = inf,
    slack: float = inf,
) -> _Search:
    oracle = Oracle([(number,) for number in range(branches * len(choices))])
    read = [partial(reading, sequences) for sequences in choices for _ in range(branches)]
    forest = _Forest([Trie.of(sequences) for sequences in choices], [branches] * len(choices))
    logits, no_answer = split_no_answer(oracle.logits(), 4)
    search = _Search(forest, 4, read, no_answer, count, rows, most_paths, slack)
    search.run(oracle, logits)
    return search


def choices_of(search: _Search, choices: list[list[list[int]]], count: int = 1) -> list[Chosen]:
    """Choose among the answers to each prompt; an answer's text is how it reads."""
    found = []
    branches = len(search.answers()) // len(choices)
    for number, answers in enumerate(search.answers()):
        sequences = choices[number // branches]
        _, (no_answer,) = split_no_answer(Oracle([(number,)]).logits(), 4)
        texts = [reading(sequences, answer.index) for answer in answers]
        window = Window(
            no_answer,
            tuple(Found(t, a.score, 1, 0, 1) for t, a in zip(texts, answers, strict=True)),
            answers[0].searched,
        )
        found.append(choose("q", [window], count, draws=False, learned_no_answer=True))
    return found


@given(
    st.lists(SEQUENCES, min_size=1, max_size=3),
    st.integers(1, 2),
    st.integers(1, 4),
    st.integers(1, 9),
)
def test_finds_the_best_of_any_sequences(
    choices: list[list[list[int]]], branches: int, count: int, rows: int
) -> None:
    """Random logits make long sequences win too, which an untrained model would not."""
    search = search_of(choices, branches, count, rows)
    for number, choice in enumerate(choices_of(search, choices, count)):
        expected = every_answer((number,), choices[number // branches])
        (none,) = expected.pop("")
        best = sorted(map(max, expected.values()), reverse=True)[:count]
        found = [exp(answer.log_probability) for answer in choice.answers]
        assert found == pytest.approx(best, rel=1e-4)
        for answer, probability in zip(choice.answers, best, strict=True):
            assert max(expected[answer.text]) == pytest.approx(probability, rel=1e-4)
            assert answer.exact
        assert exp(choice.no_answer.log_probability) == pytest.approx(none, rel=1e-4)


@given(
    st.lists(SEQUENCES, min_size=1, max_size=3),
    st.integers(1, 4),
    st.integers(1, 9),
    st.one_of(st.just(inf), st.integers(0, 12)),
)
def test_the_share_of_an_answer_is_within_its_bounds(
    choices: list[list[list[int]]], count: int, rows: int, most_paths: float
) -> None:
    search = search_of(choices, 1, count, rows, most_paths)
    for number, choice in enumerate(choices_of(search, choices, count)):
        expected = every_answer((number,), choices[number])
        total = sum(map(sum, expected.values()))
        for answer in [*choice.answers, choice.no_answer]:
            assert_within_bounds(sum(expected[answer.text]) / total, answer)


@given(
    st.lists(SEQUENCES, min_size=1, max_size=3), st.integers(1, 9), st.sampled_from([0, 0.1, 0.5])
)
def test_the_search_goes_on_until_the_bounds_are_close(
    choices: list[list[list[int]]], rows: int, slack: float
) -> None:
    search = search_of(choices, 1, 1, rows, slack=slack)
    for number, choice in enumerate(choices_of(search, choices)):
        expected = every_answer((number,), choices[number])
        total = sum(map(sum, expected.values()))
        (best,) = choice.answers
        assert_within_bounds(sum(expected[best.text]) / total, best)
        assert best.probability_at_most is not None
        assert best.probability_at_least is not None
        assert best.probability_at_most - best.probability_at_least <= slack + 1e-6
        expected.pop("")
        assert exp(best.log_probability) == pytest.approx(
            max(map(max, expected.values())), rel=1e-4
        )


@given(st.lists(SEQUENCES, min_size=2, max_size=3), st.sampled_from([0.05, 0.1, 0.5]))
def test_bounds_do_not_depend_on_the_other_questions(
    choices: list[list[list[int]]], slack: float
) -> None:
    (together, *_), (alone,) = (
        choices_of(search_of(some, 1, 1, 1000, slack=slack), some)
        for some in (choices, choices[:1])
    )
    (best,), (expected,) = together.answers, alone.answers
    assert best.paths == expected.paths
    assert best.probability_at_least == pytest.approx(expected.probability_at_least, rel=1e-5)
    assert best.probability_at_most == pytest.approx(expected.probability_at_most, rel=1e-5)


@given(SEQUENCES)
def test_bounds_are_equal_if_every_path_was_computed(sequences: list[list[int]]) -> None:
    (choice,) = choices_of(search_of([sequences], 1, 100, 9), [sequences], 100)
    for answer in [*choice.answers, choice.no_answer]:
        assert answer.probability_at_least == pytest.approx(answer.probability_at_most)


@given(SEQUENCES, st.integers(1, 4), st.integers(0, 12))
def test_a_search_that_stops_early_says_so_if_it_may_have_missed_something(
    sequences: list[list[int]], rows: int, most_paths: int
) -> None:
    (whole,) = search_of([sequences], 1, 1, rows).answers()
    (short,) = search_of([sequences], 1, 1, rows, most_paths).answers()
    assert short[0].score <= whole[0].score + 1e-6
    assert short[0].searched.paths <= whole[0].searched.paths
    if short[0].searched.exact:
        assert short[0].score == pytest.approx(whole[0].score)
    else:
        assert most_paths <= short[0].searched.paths < whole[0].searched.paths
