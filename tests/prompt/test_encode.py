"""Encoding passages as trees: nothing is lost or truncated, and windows cover the context."""

import re
import unicodedata
from copy import deepcopy
from itertools import accumulate, chain, pairwise, product
from pathlib import Path
from typing import Any

import pytest
import regex
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from tokenizers import normalizers
from transformers import AutoTokenizer

from loraqa.errors import InputError
from loraqa.prompt.encode import NoRoomError, PromptEncoder
from loraqa.prompt.segments import SegmentTokenizer
from loraqa.prompt.template import TWICE, Template
from loraqa.squad.passage import Answer, Passage, Question

TOWN = "The old town lies on the river Aune, and its mill was built by Ruth Olen in 1203."


def passage(context: str, *answers: str, unanswerable: int = 0) -> Passage:
    questions = [
        Question(f"q{n}", f"What is {n}?", (Answer(text, context.index(text)),))
        for n, text in enumerate(answers)
    ]
    questions += [Question(f"none{n}", "What of the moon?") for n in range(unanswerable)]
    return Passage(context, tuple(questions))


@pytest.fixture
def tokenizer(tiny_tokenizer: Any) -> SegmentTokenizer:
    return SegmentTokenizer.from_transformers(tiny_tokenizer)


def encoder(tokenizer: SegmentTokenizer, max_length: int = 1000, stride: int = 20) -> PromptEncoder:
    return PromptEncoder(tokenizer, Template(), max_length, stride)


def test_a_path_from_trunk_to_branch_is_the_prompt(tokenizer: SegmentTokenizer) -> None:
    encoded = encoder(tokenizer).encode_training([passage(TOWN, "river Aune", "Ruth Olen")])
    (tree,) = encoded.trees
    first, second = tree.branches
    for branch, number, answer in ((first, 0, "river Aune"), (second, 1, "Ruth Olen")):
        path = [*tree.trunk, *branch.prompt, *branch.answer]
        expected = f"Context: {TOWN} Question: What is {number}? Answer: {answer}"
        assert tokenizer.decode(path) == expected
        assert path[-1] == tokenizer.eos
        assert tokenizer.decode(branch.answer) == answer
        assert list(branch.inputs) == [*branch.prompt, *branch.answer[:-1]]
    assert tree.window == (0, len(TOWN))


def test_prompts_have_no_answers(tokenizer: SegmentTokenizer) -> None:
    encoded = encoder(tokenizer).encode_prompts([passage(TOWN, "river Aune")], 30)
    (tree,) = encoded.trees
    (branch,) = tree.branches
    assert len(branch.answer) == 0
    assert list(branch.inputs) == list(branch.prompt)


def test_an_unanswerable_question_is_answered_by_eos_alone(tokenizer: SegmentTokenizer) -> None:
    encoded = encoder(tokenizer).encode_training([passage(TOWN, "1203", unanswerable=1)])
    assert list(encoded.trees[0].branches[1].answer) == [tokenizer.eos]


def test_a_question_whose_answers_have_no_place_is_not_taken_for_unanswerable(
    tokenizer: SegmentTokenizer,
) -> None:
    asked = Passage(TOWN, (Question("q", "Who?", golds=("Ruth Aune",)),))
    with pytest.raises(InputError, match="id q"):
        encoder(tokenizer).encode_training([asked])
    assert len(encoder(tokenizer).encode_prompts([asked], 6).trees) == 1


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    words=st.lists(st.text("abcé中 \n", min_size=1, max_size=30), min_size=1, max_size=40),
    max_length=st.integers(70, 200),
    stride=st.integers(1, 20),
)
def test_windows_cover_the_context_and_fit(
    tokenizer: SegmentTokenizer, words: list[str], max_length: int, stride: int
) -> None:
    context = "x" + " ".join(words)
    trees = (
        encoder(tokenizer, max_length, stride)
        .encode_prompts([Passage(context, (Question("q", "Who?"),))], 10)
        .trees
    )
    assert all(tree.longest_path + 10 <= max_length for tree in trees)
    assert trees[0].window[0] == 0
    assert trees[-1].window[1] == len(context.rstrip())
    for tree, following in pairwise(trees):
        assert tree.window[0] < following.window[0] <= tree.window[1]


def test_windows_start_at_words_and_match_their_offsets(tokenizer: SegmentTokenizer) -> None:
    context = " ".join(f"word{n}" for n in range(100))
    question = (Question("q", "Who?"),)
    trees = encoder(tokenizer, 150).encode_prompts([Passage(context, question)], 10).trees
    assert len(trees) > 3
    for tree in trees:
        start, end = tree.window
        assert tokenizer.decode(tree.trunk) == f"Context: {context[start:end]}".strip()
        assert context[start:end].startswith("word")


@pytest.mark.parametrize(
    "text",
    [
        TWICE,
        "{context}\n\n{context}\nQ: {question} A: {answer}",
        "{context} {context} Q: {question} A: {answer}",
        "Text: {context} Again: {context} Q: {question} A: {answer}",
    ],
)
def test_a_context_may_be_read_twice(tokenizer: SegmentTokenizer, text: str) -> None:
    context = " ".join(f"word{n}" for n in range(100))
    twice = PromptEncoder(tokenizer, Template(text), 150, 10)
    trees = twice.encode_prompts([Passage(context, (Question("q", "Who?"),))], 10).trees
    assert len(trees) > 5
    for tree in trees:
        assert tree.longest_path + 10 <= 150
        written = text.replace("{context}", context[slice(*tree.window)].strip())
        written = written.replace("{question}", "Who?").removesuffix(" {answer}")
        path = tokenizer.decode([*tree.trunk, *tree.branches[0].prompt])
        # This tokenizer's windows end with the blank after their last word.
        assert re.sub(r" +(?=\s)", "", path) == written
    assert (trees[0].window[0], trees[-1].window[1]) == (0, len(context))


def test_gpt2_windows_follow_the_lead_like_a_first_word(shared: Path) -> None:
    gpt2 = SegmentTokenizer.from_transformers(AutoTokenizer.from_pretrained(shared / "gpt2"))
    question = (Question("q", "Who?"),)
    trees = encoder(gpt2, 120).encode_prompts([Passage(TOWN * 20, question)], 10).trees
    assert len(trees) > 3
    for tree in trees:
        start, end = tree.window
        assert gpt2.decode(tree.trunk) == f"Context: {(TOWN * 20)[start:end].strip()}"


# Scripts with marks, without blanks, with many bytes to a character or a grapheme.
SCRIPTS = [
    "ab c",
    "คำสั่งซื้อเเละน้ำ",
    "कला क्षेत्र हिन्दी ",
    "東京タワーは、高い。",
    "မြန်မာစာ",
    "ក្រុងភ្នំពេញ",
    "ສະບາຍດີ",
    "서울에서 ",
    "e\u0301o\u0308\u0323 ",
    "می\u200cخواهم ",
    "👨\u200d👩\u200d👧🇩🇪👍🏽",
]
GRAPHEMES = st.sampled_from([g for script in SCRIPTS for g in regex.findall(r"\X", script)])
RUNS = st.sampled_from(SCRIPTS).flatmap(
    lambda script: st.lists(st.sampled_from(regex.findall(r"\X", script)), min_size=40)
)
UNSPACED_TEXTS = st.lists(RUNS | st.lists(GRAPHEMES), min_size=2, max_size=6).map(
    lambda runs: "x" + "".join(chain.from_iterable(runs))
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(context=UNSPACED_TEXTS, max_length=st.integers(280, 400), stride=st.integers(1, 40))
def test_windows_are_nearly_full_and_cut_no_grapheme(
    tokenizer: SegmentTokenizer, context: str, max_length: int, stride: int
) -> None:
    starts = {0, *accumulate(map(len, regex.findall(r"\X", context)))}
    asked = Passage(context, (Question("q", "Who?"),))
    trees = encoder(tokenizer, max_length, stride).encode_prompts([asked], 10).trees
    for tree in trees:
        start, end = tree.window
        # The trunk's last blanks are cut off.
        assert {start, end if end < len(context.rstrip()) else len(context)} <= starts
        text = tokenizer.decode(tree.trunk)
        assert text.removeprefix("Context:").strip() == context[start:end].strip()
    assert all(tree.longest_path + 10 >= 0.9 * max_length for tree in trees[:-1])
    assert all(tree.longest_path + 10 <= max_length for tree in trees)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(context=UNSPACED_TEXTS, data=st.data())
def test_an_example_is_kept_only_where_its_trunk_holds_the_answer(
    tokenizer: SegmentTokenizer, context: str, data: st.DataObject
) -> None:
    context = context.strip()
    start = data.draw(st.integers(0, len(context) - 1))
    end = data.draw(st.integers(start + 1, min(start + 9, len(context))))
    text = context[start:end].strip()
    assume(text)
    start = context.index(text, start)
    asked = Passage(context, (Question("q", "Who?", (Answer(text, start),)),))
    encoded = encoder(tokenizer, 110).encode_training([asked])
    for tree in encoded.trees:
        assert tree.window[0] <= start
        assert start + len(text) <= tree.window[1]
        assert text in tokenizer.decode(tree.trunk)
    assert encoded.counts.skipped == ([] if encoded.trees else ["q"])


def test_small_windows_give_up_their_overlap_rather_than_cut_a_grapheme(
    tokenizer: SegmentTokenizer,
) -> None:
    context = "👨\u200d👩\u200d👧\u200d👦" * 40
    asked = Passage(context, (Question("q", "Who?"),))
    for max_length, stride in product(range(46, 120, 3), [2, 20]):
        trees = encoder(tokenizer, max_length, stride).encode_prompts([asked], 10).trees
        assert all("�" not in tokenizer.decode(tree.trunk) for tree in trees)
        assert {offset % 7 for tree in trees for offset in tree.window} == {0}
        assert all(a.window[0] < b.window[0] <= a.window[1] for a, b in pairwise(trees))


def test_a_grapheme_longer_than_a_window_is_cut_between_characters(
    tokenizer: SegmentTokenizer,
) -> None:
    context = "a" + "\u0301" * 200 + " é" * 60
    encoded = encoder(tokenizer, 120).encode_training([passage(context, "é")])
    assert encoded.trees
    for tree in encoder(tokenizer, 120).encode_prompts([passage(context, "é")], 10).trees:
        assert context[slice(*tree.window)].strip() in tokenizer.decode(tree.trunk)


@pytest.mark.parametrize("syllable", ["\u1112\u1161\u11ab", "e\u0301", "o\u0323\u0302"])
def test_windows_hold_characters_that_the_tokenizer_composes(
    tiny_tokenizer: Any, syllable: str
) -> None:
    composing = deepcopy(tiny_tokenizer)
    composing.backend_tokenizer.normalizer = normalizers.NFC()
    tokenizer = SegmentTokenizer.from_transformers(composing)
    context = syllable * 150
    trees = encoder(tokenizer, 150, 20).encode_prompts([passage(context, syllable)], 10).trees
    assert len(trees) > 1
    assert trees[-1].window[1] == len(context)
    for tree in trees:
        held = unicodedata.normalize("NFC", context[slice(*tree.window)])
        assert tokenizer.decode(tree.trunk) == f"Context: {held}"
    start = len(context) - len(syllable)
    asked = Passage(context, (Question("q", "Who?", (Answer(syllable, start),)),))
    assert encoder(tokenizer, 150, 20).encode_training([asked]).counts.skipped == []


def test_windows_split_a_word_that_is_too_long(tokenizer: SegmentTokenizer) -> None:
    question = (Question("q", "Who?"),)
    trees = encoder(tokenizer, 100).encode_prompts([Passage("x" * 500, question)], 10).trees
    assert trees[-1].window[1] == 500


SENTENCES = st.sampled_from(
    ["The mill stood.", "“It was old.”", "Who built it?", "No one knew.[1]"]
)
PARAGRAPHS = st.lists(SENTENCES, min_size=1, max_size=3).map(" ".join)
GAPS = st.sampled_from(["\n\n", "\n \n", "\r\n\r\n", "\n\n\n  "])


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(
    texts=st.lists(st.tuples(PARAGRAPHS, GAPS), min_size=2, max_size=30),
    window_length=st.integers(20, 60),
)
def test_windows_of_a_text_with_paragraphs_are_read_like_short_texts(
    tokenizer: SegmentTokenizer, texts: list[tuple[str, str]], window_length: int
) -> None:
    context = "".join(chain.from_iterable(texts))
    asked = Passage(context, (Question("q", "Who?"),))
    encoder = PromptEncoder(tokenizer, Template(), 120, 5, window_length)
    trees = encoder.encode_prompts([asked], 10).trees
    read = [place for tree in trees for place in range(*tree.window)]
    assert read == sorted(set(read))
    unread = set(range(len(context))) - set(read)
    assert all(context[place].isspace() for place in unread)
    for tree in trees:
        text = context[slice(*tree.window)]
        [alone] = encoder.encode_prompts([Passage(text, asked.questions)], 10).trees
        assert tree.trunk.tolist() == alone.trunk.tolist()


def test_a_window_takes_whole_paragraphs_until_it_is_half_full(
    tokenizer: SegmentTokenizer,
) -> None:
    short, long = "A mill stood here.", "The old mill stood by the river and ground corn. " * 2
    texts = ["1. The mill", long, "2. The miller", long, short, short, short, long * 3]
    context = "\n\n".join(text.strip() for text in texts)
    length = len(tokenizer.encode([long])[0].ids) + 20
    encoder = PromptEncoder(tokenizer, Template(), 4 * length, 5, length)
    asked = Passage(context, (Question("q", "Who?"),))
    windows = [tree.window for tree in encoder.encode_prompts([asked], 10).trees]
    read = [context[slice(*window)].strip() for window in windows]
    assert read[0] == f"1. The mill\n\n{long.strip()}"
    assert read[1] == f"2. The miller\n\n{long.strip()}"
    assert read[2] == "\n\n".join([short] * 3)
    # A paragraph that fits into the model is not cut.
    assert read[3:] == [(long * 3).strip()]


def test_a_training_window_without_the_answer_is_left_out(tokenizer: SegmentTokenizer) -> None:
    context = " ".join(f"word{n}" for n in range(100))
    encoded = encoder(tokenizer, 150).encode_training([passage(context, "word3 ", "word97")])
    for tree in encoded.trees:
        start, end = tree.window
        for branch in tree.branches:
            assert tokenizer.decode(branch.answer) in context[start:end]
    counts = encoded.counts
    windows = len(encoder(tokenizer, 150).encode_prompts([passage(context, "word3")], 6).trees)
    assert counts.windowed == 1
    assert counts.left_out > 0
    assert counts.examples + counts.left_out >= windows
    assert counts.skipped == []


def test_a_window_without_the_answer_is_trained_as_unanswerable_in_v2(
    tokenizer: SegmentTokenizer,
) -> None:
    context = " ".join(f"word{n}" for n in range(100))
    encoded = encoder(tokenizer, 150).encode_training([passage(context, "word3 ", unanswerable=1)])
    assert encoded.counts.left_out == 0
    assert encoded.counts.not_here > 0
    for tree in encoded.trees:
        start, end = tree.window
        answer = tree.branches[0].answer
        assert (tokenizer.decode(answer) == "word3") == ("word3 " in context[start:end])
        assert list(tree.branches[1].answer) == [tokenizer.eos]


def test_an_answer_with_trailing_blanks_is_in_the_last_window(tokenizer: SegmentTokenizer) -> None:
    context = " ".join(f"word{n}" for n in range(100)) + " \n"
    encoded = encoder(tokenizer, 150).encode_training([passage(context, "word99 \n")])
    assert encoded.counts.skipped == []


def test_a_question_whose_answer_is_in_no_window_is_skipped(tokenizer: SegmentTokenizer) -> None:
    context = " ".join(f"word{n}" for n in range(100))
    long_answer = " ".join(f"word{n}" for n in range(20, 28))
    encoded = encoder(tokenizer, 170, stride=1).encode_training([passage(context, long_answer)])
    held = any(tree.branches for tree in encoded.trees)
    assert encoded.counts.skipped == ([] if held else ["q0"])


def test_a_question_that_leaves_no_room_is_reported(tokenizer: SegmentTokenizer) -> None:
    named = r"^The question '.*' \(id q0\) takes .*; raise max_length, lower stride, or shorten"
    with pytest.raises(InputError, match=named):
        encoder(tokenizer, 40).encode_training([passage(TOWN * 10, "river Aune")])


def test_all_questions_that_leave_no_room_are_told_at_once(tokenizer: SegmentTokenizer) -> None:
    short, longer, longest = (Question(f"{times}", "Why is that? " * times) for times in (1, 8, 12))
    long_context, other, fits = TOWN * 10, TOWN * 9, "A town."
    passages = [
        Passage(long_context, (short, longer, longest)),
        Passage(fits, (Question("fits", longer.text),)),
        Passage(other, (Question("other", longer.text), Question("good", "Why?"))),
    ]
    with pytest.raises(NoRoomError) as refused:
        encoder(tokenizer, 120).encode_prompts(passages, 10)
    assert [question.id for question in refused.value.reasons] == ["12", "8", "other"]
    assert re.match(r"The question 'Why .*' \(id 12\) takes \d+ of 120", str(refused.value))
    # Each is refused by itself, too, and the others are not.
    for asked in passages:
        for question in asked.questions:
            alone = [Passage(asked.context, (question,))]
            if question in refused.value.reasons:
                with pytest.raises(NoRoomError):
                    encoder(tokenizer, 120).encode_prompts(alone, 10)
            else:
                assert encoder(tokenizer, 120).encode_prompts(alone, 10).trees


def test_answers_that_leave_no_room_are_told_before_questions(tokenizer: SegmentTokenizer) -> None:
    asked = (Question("long", "Why is that? " * 40), Question("short", "Why?"))
    with pytest.raises(InputError, match=r"^Answers of up to 100 of 120 tokens leave no room"):
        encoder(tokenizer, 120).encode_prompts([Passage(TOWN * 10, asked)], 100)


def test_counts_of_squad(shared: Path) -> None:
    import json

    official = json.loads((shared / "data" / "squad1-train.json").read_text())
    passages = [
        Passage(
            paragraph["context"],
            tuple(
                Question(
                    qa["id"],
                    qa["question"],
                    tuple(Answer(a["text"], a["answer_start"]) for a in qa["answers"]),
                )
                for qa in paragraph["qas"]
            ),
        )
        for article in official["data"]
        for paragraph in article["paragraphs"]
    ]
    gpt2 = SegmentTokenizer.from_transformers(AutoTokenizer.from_pretrained(shared / "gpt2"))
    counts = PromptEncoder(gpt2, Template(), 1024, 128).encode_training(passages).counts
    assert (counts.passages, counts.questions, counts.examples) == (2430, 11877, 11877)
    # Figures from the description of the data: 2.02M and 0.59M tokens, including eos.
    assert round(counts.separate_tokens + 11877, -4) == 2_020_000
    assert round(counts.tree_tokens + 11877, -4) == 590_000
