"""From passages to trees, with windows where a context is too long. Nothing is cut in silence."""

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from itertools import repeat
from operator import itemgetter

import numpy as np

from loraqa.errors import InputError, quote
from loraqa.garbage import no_garbage
from loraqa.prompt.segments import EncodedText, SegmentTokenizer
from loraqa.prompt.template import Template
from loraqa.prompt.tree import Branch, TokenIds, Tree
from loraqa.squad.passage import Passage, Question

# A window with less room than this holds too little context to answer from.
_SMALLEST_WINDOW = 16


@dataclass
class EncodingCounts:
    """What encoding did with the data.

    Attributes:
        passages, questions: what came in.
        trees, examples: what came out; a question has an example in every window it is used in.
        windowed: passages whose context was spread over several windows.
        not_here: examples whose window holds no answer, trained to say so (SQuAD v2.0).
        left_out: examples left out because their window holds no answer (SQuAD v1.1).
        skipped: ids of questions whose answer no window holds whole.
        tree_tokens, separate_tokens: input tokens as trees, and as one example per question.
    """

    passages: int = 0
    questions: int = 0
    trees: int = 0
    examples: int = 0
    windowed: int = 0
    not_here: int = 0
    left_out: int = 0
    skipped: list[str] = field(default_factory=list)
    tree_tokens: int = 0
    separate_tokens: int = 0

    def to_json(self) -> dict[str, object]:
        """The counts as plain JSON values."""
        return asdict(self)


@dataclass(frozen=True)
class Encoded:
    """The trees of a data set, and what encoding did."""

    trees: list[Tree]
    counts: EncodingCounts


@dataclass(frozen=True)
class _Context:
    """An encoded context segment: ids before the context, its own ids, and their offsets in it.

    An offset is looked up where it is needed: of most contexts, which fit into one window, those
    of the first and the last token.
    """

    lead: TokenIds
    blank_in_lead: bool
    ids: TokenIds
    offset: Callable[[int], tuple[int, int]]
    text: str

    def characters(self, window: tuple[int, int]) -> tuple[int, int]:
        """The part of the text that a range of its tokens covers."""
        start, end = window
        return self.offset(start)[0], self.offset(end - 1)[1]


class PromptEncoder:
    """Encodes passages as trees whose every path fits into `max_length` tokens.

    Args:
        tokenizer: the base model's tokenizer, wrapped.
        template: the prompt.
        max_length: the longest path from the start of the trunk to the end of a branch, in tokens.
        stride: how many tokens two neighbouring windows of a long context share.
    """

    def __init__(
        self, tokenizer: SegmentTokenizer, template: Template, max_length: int, stride: int
    ) -> None:
        self.tokenizer = tokenizer
        self.template = template
        self.max_length = max_length
        self.stride = stride
        self._eos = np.array([tokenizer.eos], dtype=np.int32)

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 (hex) of everything that decides which trees a data set gives."""
        parts = [self.tokenizer.fingerprint, self.template.text, self.max_length, self.stride]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()

    @no_garbage()
    def encode_training(self, passages: Sequence[Passage]) -> Encoded:
        """Trees with answers: each question's first, or eos alone where it has none.

        If some question of the data has no answer (SQuAD v2.0), a window without the answer of
        its question is an example of "not here"; otherwise it is left out and counted.

        Raises:
            InputError: a question and its answer leave no room for a context.
        """
        not_here_exists = any(not q.answerable for p in passages for q in p.questions)
        contexts, prompts, answers = self._encode(
            passages, _training_texts(self.template, passages)
        )
        ends = (np.concatenate([answer.ids, self._eos]) for answer in answers)
        counts = EncodingCounts()
        trees: list[Tree] = []
        for index, context, branches in self._branches(passages, contexts, prompts, ends):
            passage = passages[index]
            windows = self._windows(context, passage.questions, branches, room=0)
            held: set[str] = set()
            for window in windows:
                kept = []
                for question, branch in zip(passage.questions, branches, strict=True):
                    if len(windows) == 1 or _holds_answer(context.characters(window), question):
                        kept.append(branch)
                        held.add(question.id)
                    elif not_here_exists:
                        kept.append(self._not_here(branch))
                        counts.not_here += 1
                    else:
                        counts.left_out += 1
                if kept:
                    trees.append(_tree(context, window, kept, index))
            counts.skipped += [q.id for q in passage.questions if q.id not in held]
            counts.windowed += len(windows) > 1
        return _count(Encoded(trees, counts), passages)

    @no_garbage()
    def encode_prompts(self, passages: Sequence[Passage], max_answer_tokens: int) -> Encoded:
        """Trees without answers, each path leaving room for `max_answer_tokens`.

        Raises:
            InputError: a question leaves no room for a context.
        """
        contexts, prompts, _ = self._encode(passages, _prompt_texts(self.template, passages))
        no_answers = repeat(np.empty(0, dtype=np.int32))
        counts = EncodingCounts()
        trees: list[Tree] = []
        for index, context, branches in self._branches(passages, contexts, prompts, no_answers):
            questions = passages[index].questions
            windows = self._windows(context, questions, branches, room=max_answer_tokens)
            trees += [_tree(context, window, branches, index) for window in windows]
            counts.windowed += len(windows) > 1
        return _count(Encoded(trees, counts), passages)

    def _encode(
        self, passages: Sequence[Passage], texts: Sequence[str]
    ) -> tuple[Iterator[EncodedText], Iterator[EncodedText], Iterator[EncodedText]]:
        """The contexts of these passages, their prompts, and their answers where texts go on."""
        encoded = self.tokenizer.encode(texts)
        contexts, questions = len(passages), sum(len(p.questions) for p in passages)
        answers = contexts + questions
        return iter(encoded[:contexts]), iter(encoded[contexts:answers]), iter(encoded[answers:])

    def _branches(
        self,
        passages: Sequence[Passage],
        contexts: Iterator[EncodedText],
        prompts: Iterator[EncodedText],
        answers: Iterator[TokenIds],
    ) -> Iterator[tuple[int, _Context, list[Branch]]]:
        """The passages that have questions: index, context, and a branch for each question."""
        for index, (passage, context) in enumerate(zip(passages, contexts, strict=True)):
            branches = [Branch(q.id, next(prompts).ids, next(answers)) for q in passage.questions]
            if branches:
                yield index, self._context(passage.context, context), branches

    def _context(self, text: str, segment: EncodedText) -> _Context:
        ids, before = segment.ids, len(self.template.context_lead)

        def offset(token: int) -> tuple[int, int]:
            start, end = segment.offset(token)
            return max(start - before, 0), end - before

        # A short one: two tokens with the default prompt.
        lead = next((token for token in range(len(ids)) if offset(token)[1] > 0), len(ids))
        start = np.array(self.tokenizer.start, dtype=np.int32)
        return _Context(
            lead=np.concatenate([start, ids[:lead]]),
            blank_in_lead=offset(lead - 1)[1] == 0 if lead else True,
            ids=ids[lead:],
            offset=lambda token: offset(lead + token),
            text=text,
        )

    def _windows(
        self,
        context: _Context,
        questions: Sequence[Question],
        branches: Sequence[Branch],
        room: int,
    ) -> list[tuple[int, int]]:
        """Token ranges of the context that leave `room` beside the lead and the longest branch."""
        length, longest = max(zip(map(len, branches), questions, strict=True), key=itemgetter(0))
        size = self.max_length - len(context.lead) - length - room
        if len(context.ids) <= size:
            return [(0, len(context.ids))]
        if size < max(_SMALLEST_WINDOW, self.stride + 1):
            raise InputError(self._explain_no_room(longest, length, room))
        return list(_stride_windows(_word_starts(context), len(context.ids), size, self.stride))

    def _explain_no_room(self, question: Question, length: int, room: int) -> str:
        """Blame what takes more: the room for answers, or a question.

        Where room is left for an answer the model is asked, as it was trained: only questions and
        answers can be shorter.
        """
        windows = f"no room for windows with a stride of {self.stride}"
        if room > length:
            return (
                f"Answers of up to {room} of {self.max_length} tokens leave {windows}; lower "
                "max_answer_tokens."
            )
        return (
            f"The question {quote(question.text)} (id {question.id}) takes {length + room} of "
            f"{self.max_length} tokens with its answer and leaves {windows}; "
            f"{'' if room else 'raise max_length, lower stride, or '}shorten the question."
        )

    def _not_here(self, branch: Branch) -> Branch:
        return Branch(branch.question_id, branch.prompt, self._eos)


def _training_texts(template: Template, passages: Sequence[Passage]) -> list[str]:
    """Return all contexts, then all prompts, then all answers."""
    questions = [question for passage in passages for question in passage.questions]
    answers = (q.answers[0].text if q.answers else "" for q in questions)
    return [*_prompt_texts(template, passages), *map(template.answer, answers)]


def _prompt_texts(template: Template, passages: Sequence[Passage]) -> list[str]:
    contexts = (template.context(passage.context) for passage in passages)
    prompts = (template.question(q.text) for passage in passages for q in passage.questions)
    return [*contexts, *prompts]


def _word_starts(context: _Context) -> TokenIds:
    """Indices of tokens that begin a word: windows do not cut words (or characters) apart.

    A window follows the lead as the context's first word does: with its blank, unless the blank
    is a token of its own, which then belongs to the lead.
    """
    text = context.text
    starts = [
        index
        for index, (start, _) in enumerate(map(context.offset, range(len(context.ids))))
        if (
            text[start - 1 : start].isspace() and not text[start].isspace()
            if context.blank_in_lead
            else text[start].isspace()
        )
    ]
    return np.array(starts, dtype=np.int32)


def _stride_windows(
    word_starts: TokenIds, length: int, size: int, stride: int
) -> Iterator[tuple[int, int]]:
    """Cover `length` tokens by windows of at most `size` that overlap by at least `stride`."""
    start = 0
    while length - start > size:
        end = _last_at_most(word_starts, start + size, default=start + size, above=start + stride)
        yield start, end
        start = _last_at_most(word_starts, end - stride, default=end - stride, above=start)
    yield start, length


def _last_at_most(values: TokenIds, bound: int, default: int, above: int) -> int:
    position = int(np.searchsorted(values, bound, side="right")) - 1
    return int(values[position]) if position >= 0 and values[position] > above else default


def _holds_answer(characters: tuple[int, int], question: Question) -> bool:
    """Whether a window has what it is to say: the whole answer, or that there is none."""
    if not question.answers:
        return True
    answer = question.answers[0]
    # Blanks at the end are no part of what is to be said, and none of the last window.
    end = answer.start + len(answer.text.rstrip())
    return characters[0] <= answer.start and end <= characters[1]


def _tree(
    context: _Context, window: tuple[int, int], branches: Sequence[Branch], passage: int
) -> Tree:
    trunk = np.concatenate([context.lead, context.ids[slice(*window)]])
    return Tree(trunk, tuple(branches), passage, context.characters(window))


def _count(encoded: Encoded, passages: Sequence[Passage]) -> Encoded:
    counts = encoded.counts
    counts.passages = len(passages)
    counts.questions = sum(len(p.questions) for p in passages)
    counts.trees = len(encoded.trees)
    counts.examples = sum(len(tree.branches) for tree in encoded.trees)
    counts.tree_tokens = sum(map(len, encoded.trees))
    counts.separate_tokens = sum(tree.separate_length for tree in encoded.trees)
    return encoded
