"""Encode passages as trees, with windows over long contexts. Nothing is truncated silently."""

import hashlib
import json
import re
from bisect import bisect_left
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from itertools import pairwise, repeat
from operator import itemgetter

import numpy as np
from numpy.typing import NDArray

from loraqa.errors import InputError, quote
from loraqa.garbage import no_garbage
from loraqa.prompt.segments import EncodedText, SegmentTokenizer
from loraqa.prompt.template import Template, split_at_controls
from loraqa.prompt.tree import Branch, TokenIds, Tree
from loraqa.squad.passage import Passage, Question
from loraqa.squad.segmentation import inside_graphemes, inside_pieces

# Windows with fewer context tokens are refused: they contain too little to answer from.
_SMALLEST_WINDOW = 16
# Tokens of a short question. Where not even that leaves room, answers are to blame.
_SHORT_QUESTION = 16

# A blank line after a whole sentence. One after a heading, or at the end of a page in the middle of
# a sentence, is none.
_END_OF_PARAGRAPH = re.compile(
    r"[.!?…。．｡！？।။؟։][\[\]\d)*\"'”’“‘»›」』）》]*[^\S\n]*[»›]?[^\S\n]*(?:\n\s*\n|\u2029)\s*"
)


class NoRoomError(InputError):
    """Questions that are too long to leave room for their contexts.

    Args:
        reasons: what is wrong with each question, as it follows "The question".
    """

    def __init__(self, reasons: Mapping[Question, str]) -> None:
        super().__init__(reasons)
        self.reasons = reasons

    def __str__(self) -> str:
        question, reason = next(iter(self.reasons.items()))
        return f"The question {quote(question.text)} (id {question.id}) {reason}."


@dataclass
class EncodingCounts:
    """Counts of an encoding.

    Attributes:
        passages, questions: number of inputs.
        trees: number of encoded trees.
        examples: number of encoded branches; a question has one in each window that uses it.
        windowed: passages whose context needed several windows.
        not_here: examples trained to say "no answer" because their window does not contain the
            answer.
        left_out: examples left out because their window does not contain the answer, and no
            question teaches "no answer".
        skipped: ids of questions whose answer is not completely in any window.
        tree_tokens: input tokens as trees.
        separate_tokens: input tokens with one copy of the context per example.
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
        """Return the counts as JSON values."""
        return asdict(self)


@dataclass(frozen=True)
class Encoded:
    """The trees of a data set, and the counts of the encoding."""

    trees: list[Tree]
    counts: EncodingCounts


@dataclass(frozen=True)
class _Context:
    """An encoded context segment.

    Attributes:
        lead: token ids before the context.
        again: token ids between the context and its repetition; None if it is not repeated.
        blank_in_lead: whether the blank before the context belongs to the lead's tokens.
        ids: token ids of the context.
        offset: index into `ids` to the token's character offsets (start, end) in the context. It
            is a function because most contexts fit into one window and need only the offsets of
            their first and last token.
        text: the context.
        start: where the context starts in the text of its passage.
    """

    lead: TokenIds
    again: TokenIds | None
    blank_in_lead: bool
    ids: TokenIds
    offset: Callable[[int], tuple[int, int]]
    text: str
    start: int = 0

    def trunk(self, window: tuple[int, int]) -> TokenIds:
        """Return the trunk of a tree with a range of the context's tokens."""
        ids = self.ids[slice(*window)]
        again = [] if self.again is None else [self.again, ids]
        return np.concatenate([self.lead, ids, *again])

    def fitting(self, space: int) -> int:
        """Return how many of the context's tokens fit into a trunk of `space` tokens."""
        if self.again is None:
            return space - len(self.lead)
        return (space - len(self.lead) - len(self.again)) // 2

    def characters(self, window: tuple[int, int]) -> tuple[int, int]:
        """Return the offsets in the passage of the characters that a range of tokens holds."""
        start, end = window
        first, last = self.offset(start)[0], self._end_of_grapheme(self.offset(end - 1)[1])
        if start > 0:
            first = max(first, self.offset(start - 1)[1])
        if end < len(self.ids):
            last = min(last, self.offset(end)[0])
        return self.start + first, self.start + max(first, last)

    def tokens_before(self, character: int) -> int:
        """Return how many tokens start before a character of the context."""
        return bisect_left(range(len(self.ids)), character, key=lambda token: self.offset(token)[0])

    def _end_of_grapheme(self, end: int) -> int:
        """Return where the grapheme before the end of a token ends.

        The offsets of a character that the tokenizer composes (NFC), as Hangul from its letters,
        are those of its first part.
        """
        # Graphemes are not looked for in most texts, whose last token ends where they do.
        while not self.text[end : end + 1].isascii() and end in inside_graphemes(self.text):
            end += 1
        return end


class PromptEncoder:
    """Encodes passages as trees whose every path fits into `max_length` tokens.

    Args:
        tokenizer: the base model's tokenizer, wrapped.
        template: the template of the prompt.
        max_length: maximum length of a path from the trunk's start to a branch's end, in tokens.
        stride: number of tokens shared by two neighbouring windows of a long context.
        window_length: how many tokens of a long context a window holds; None is as many as fit.
            Short windows share less: a quarter of their tokens. Where a model answers, its windows
            then are whole paragraphs, and longer where a single paragraph is.
    """

    def __init__(
        self,
        tokenizer: SegmentTokenizer,
        template: Template,
        max_length: int,
        stride: int,
        window_length: int | None = None,
    ) -> None:
        self.tokenizer = tokenizer
        self.template = template
        self.max_length = max_length
        self.stride = stride if window_length is None else min(stride, window_length // 4)
        self.window_length = window_length
        self._eos = np.array([tokenizer.eos], dtype=np.int32)
        self._before_context = self._fixed(template.before_context, tokenizer.start)
        # By whether the blank before the context belongs to it, or to the context's first token.
        between = template.between_contexts
        self._between_contexts = {
            True: None if between is None else self._fixed(between),
            False: None if between is None else self._fixed(between.removesuffix(" ")),
        }
        self._before_question = self._fixed(template.before_question)
        self._after_question = self._fixed(template.after_question)
        self._framed = bool(template.before_question or template.after_question)

    def _fixed(self, literal: str, start: Sequence[int] = ()) -> TokenIds:
        """Encode a part of the template that has control tokens; `start` is put before it."""
        ids = list(start)
        for index, part in enumerate(split_at_controls(literal)):
            ids += [self.tokenizer.control(part)] if index % 2 else self._ids_of(part)
        return np.array(ids, dtype=np.int32)

    def _ids_of(self, text: str) -> list[int]:
        return self.tokenizer.encode([text])[0].ids.tolist() if text else []

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 (hex) of everything that decides which trees a data set gives."""
        between = [ids for ids in self._between_contexts.values() if ids is not None]
        fixed = self._before_context, *between, self._before_question, self._after_question
        parts = [
            *(self.tokenizer.fingerprint, self.template.text, self.max_length, self.stride),
            self.window_length,
            # Two tokenizers may give a control token of the template different ids.
            [ids.tolist() for ids in fixed],
        ]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()

    @no_garbage()
    def encode_training(self, passages: Sequence[Passage]) -> Encoded:
        """Encode passages with answers: the first of each question, or only eos if it has none.

        A window may lack the answer to a question. If some questions have no answer (SQuAD v2.0,
        or negatives), the model is trained to say "no answer" there; otherwise the example is left
        out and counted.

        Raises:
            InputError: a question and its answer leave no room for the context, or none of a
                question's answers has a place in it (see `QADataset.to_learn_from`).
        """
        _check_places(passages)
        some_unanswerable = any(not q.answerable for p in passages for q in p.questions)
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
                    elif some_unanswerable:
                        kept.append(self._unanswerable(branch))
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
        """Encode passages without answers, leaving room for `max_answer_tokens` on each path.

        Raises:
            NoRoomError: questions leave no room for their contexts.
            InputError: answers leave no room for a context.
        """
        contexts, prompts, _ = self._encode(passages, _prompt_texts(self.template, passages))
        no_answers = repeat(np.empty(0, dtype=np.int32))
        counts = EncodingCounts()
        trees: list[Tree] = []
        too_long: dict[Question, str] = {}
        for index, context, branches in self._branches(passages, contexts, prompts, no_answers):
            questions = passages[index].questions
            try:
                windows = [
                    _tree(section, window, branches, index)
                    for section in self._sections(context, branches, max_answer_tokens)
                    for window in self._windows(section, questions, branches, max_answer_tokens)
                ]
            except NoRoomError as error:
                # Whoever leaves questions out wants to know all of them at once.
                too_long |= error.reasons
                continue
            trees += windows
            counts.windowed += len(windows) > 1
        if too_long:
            raise NoRoomError(too_long)
        return _count(Encoded(trees, counts), passages)

    def _encode(
        self, passages: Sequence[Passage], texts: Sequence[str]
    ) -> tuple[Iterator[EncodedText], Iterator[EncodedText], Iterator[EncodedText]]:
        """Encode `texts`: the passages' contexts, then their prompts, then any answers."""
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
        """Yield the index, the context and the branches of each passage with questions."""
        for index, (passage, context) in enumerate(zip(passages, contexts, strict=True)):
            branches = [
                Branch(q.id, self._prompt(next(prompts)), next(answers)) for q in passage.questions
            ]
            if branches:
                yield index, self._context(passage.context, context), branches

    def _prompt(self, question: EncodedText) -> TokenIds:
        if not self._framed:
            return question.ids
        return np.concatenate([self._before_question, question.ids, self._after_question])

    def _context(self, text: str, segment: EncodedText, start: int = 0) -> _Context:
        ids, before = segment.ids, len(self.template.context_lead)

        def offset(token: int) -> tuple[int, int]:
            begin, end = segment.offset(token)
            return max(begin - before, 0), end - before

        # Search from the start, because the lead is short: two tokens with the default prompt.
        lead = next((token for token in range(len(ids)) if offset(token)[1] > 0), len(ids))
        blank_in_lead = offset(lead - 1)[1] == 0 if lead else True
        return _Context(
            lead=np.concatenate([self._before_context, ids[:lead]]),
            again=self._between_contexts[blank_in_lead],
            blank_in_lead=blank_in_lead,
            ids=ids[lead:],
            offset=lambda token: offset(lead + token),
            text=text,
            start=start,
        )

    def _sections(
        self, context: _Context, branches: Sequence[Branch], room: int
    ) -> Sequence[_Context]:
        """Split a context that does not fit between paragraphs, and encode each part by itself.

        A window then starts and ends as the contexts of the training do, and is as long.
        """
        size = self._space(context, branches, room)
        if self.window_length is None or len(context.ids) <= size:
            return [context]
        parts = list(_of_whole_paragraphs(context, min(size, self.window_length)))
        texts = [context.text[start:end] for start, end in parts]
        encoded = self.tokenizer.encode([self.template.context(text) for text in texts])
        return [
            self._context(text, segment, start)
            for text, segment, (start, _) in zip(texts, encoded, parts, strict=True)
        ]

    def _space(self, context: _Context, branches: Sequence[Branch], room: int) -> int:
        """Return how many tokens of the context fit beside lead, longest branch and `room`."""
        return context.fitting(self.max_length - max(map(len, branches)) - room)

    def _windows(
        self,
        context: _Context,
        questions: Sequence[Question],
        branches: Sequence[Branch],
        room: int,
    ) -> list[tuple[int, int]]:
        """Return token ranges of the context that fit beside lead, longest branch and `room`."""
        space = self._space(context, branches, room)
        if len(context.ids) <= space:
            return [(0, len(context.ids))]
        size = self._window_size(space)
        if size < self._smallest_window:
            raise self._no_room(context, questions, branches, room)
        cuts = _Cuts(context, slack=self.max_length // 10)
        return list(_stride_windows(cuts, len(context.ids), size, self.stride))

    def _window_size(self, space: int) -> int:
        return space if self.window_length is None else min(space, self.window_length)

    @property
    def _smallest_window(self) -> int:
        return max(_SMALLEST_WINDOW, self.stride + 1)

    def _no_room(
        self,
        context: _Context,
        questions: Sequence[Question],
        branches: Sequence[Branch],
        room: int,
    ) -> InputError:
        """Return the error that answers are too long, or questions if short ones would fit.

        With `room` the model answers, so its max_length and stride are fixed by training, and only
        questions and answers can be made shorter.
        """
        too_long = [
            (len(branch), question)
            for branch, question in zip(branches, questions, strict=True)
            if self._leaves_no_room(context, len(branch), room)
        ]
        too_long.sort(key=itemgetter(0), reverse=True)
        windows = f"no room for windows with a stride of {self.stride}"
        if room and self._leaves_no_room(context, _SHORT_QUESTION, room):
            return InputError(
                f"Answers of up to {room} of {self.max_length} tokens leave {windows}; lower "
                "max_answer_tokens."
            )
        advice = f"{'' if room else 'raise max_length, lower stride, or '}shorten the question"
        return NoRoomError(
            {
                question: f"takes {length + room} of {self.max_length} tokens with its answer and "
                f"leaves {windows}; {advice}"
                for length, question in too_long
            }
        )

    def _leaves_no_room(self, context: _Context, length: int, room: int) -> bool:
        """Return whether a question of `length` tokens leaves no room for a window."""
        space = context.fitting(self.max_length - length - room)
        return len(context.ids) > space and self._window_size(space) < self._smallest_window

    def _unanswerable(self, branch: Branch) -> Branch:
        return Branch(branch.question_id, branch.prompt, self._eos)


def _check_places(passages: Sequence[Passage]) -> None:
    for question in (question for passage in passages for question in passage.questions):
        if question.answerable and not question.answers:
            raise InputError(
                f"No answer to the question {quote(question.text)} (id {question.id}) is in its "
                "context, so nothing can be learned from it; leave it out."
            )


def _training_texts(template: Template, passages: Sequence[Passage]) -> list[str]:
    """Return all contexts, then all prompts, then all answers.

    One list for all of them, because words that they share are then encoded only once.
    """
    questions = [question for passage in passages for question in passage.questions]
    answers = (q.answers[0].text if q.answers else "" for q in questions)
    return [*_prompt_texts(template, passages), *map(template.answer, answers)]


def _prompt_texts(template: Template, passages: Sequence[Passage]) -> list[str]:
    contexts = (template.context(passage.context) for passage in passages)
    prompts = (template.question(q.text) for passage in passages for q in passage.questions)
    return [*contexts, *prompts]


def _of_whole_paragraphs(context: _Context, size: int) -> Iterator[tuple[int, int]]:
    """Split a text into parts of whole paragraphs, as ranges of characters.

    A part has at most `size` tokens, unless it is a single paragraph, and at least half as many,
    unless the next paragraph does not fit.
    """
    text = context.text
    starts = [0, *(found.end() for found in _END_OF_PARAGRAPH.finditer(text)), len(text)]
    first, taken = 0, 0
    for start, end in pairwise(starts):
        before, after = context.tokens_before(start), context.tokens_before(end)
        if first < start and after - taken > size:
            yield first, start
            first, taken = start, before
        if 2 * (after - taken) >= size:
            yield first, end
            first, taken = end, after
    if first < len(text):
        yield first, len(text)


class _Cuts:
    """The places between tokens where a window may start or end, the better kinds first.

    Windows start and end at words that follow a blank, else between pieces of the text, else
    between graphemes. A better place is not worth more than `slack` tokens of a window. Only a
    grapheme with more tokens than a window is cut apart.
    """

    def __init__(self, context: _Context, slack: int) -> None:
        offsets = np.array([context.offset(token) for token in range(len(context.ids))])
        starts, ends = offsets[1:, 0], offsets[:-1, 1]
        # Tokens of bytes may share a character.
        apart = starts >= ends
        between_pieces, between_graphemes = (
            apart & ~np.isin(starts, list(inside(context.text)))
            for inside in (inside_pieces, inside_graphemes)
        )
        words = np.array([_starts_word(context, int(start)) for start in starts], dtype=bool)
        kinds = (words & between_graphemes, between_pieces, between_graphemes)
        self._kinds = [np.flatnonzero(kind) + 1 for kind in kinds]
        self._slack = slack

    def last(self, bound: int, above: int) -> int | None:
        """Return the best index of a token up to `bound` and greater than `above`, if any."""
        found = [_last_at_most(kind, bound) for kind in self._kinds]
        near = (index for index in found if index > max(above, bound - self._slack))
        return next(near, found[-1] if found[-1] > above else None)


def _starts_word(context: _Context, start: int) -> bool:
    """Return whether a token that starts at an offset starts a word that follows a blank.

    The first word of a window must follow the lead like the first word of the context: with its
    blank, unless the lead's tokens already contain the blank.
    """
    text = context.text
    if context.blank_in_lead:
        return text[start - 1 : start].isspace() and not text[start : start + 1].isspace()
    return text[start : start + 1].isspace()


def _stride_windows(cuts: _Cuts, length: int, size: int, stride: int) -> Iterator[tuple[int, int]]:
    """Cover `length` tokens with windows of at most `size` that overlap by at least `stride`.

    Where long graphemes leave no place for that, windows overlap less.
    """
    start = 0
    while length - start > size:
        most = start + size
        end = cuts.last(most, above=start + stride) or cuts.last(most, above=start) or most
        yield start, end
        start = cuts.last(end - stride, above=start) or end
    yield start, length


def _last_at_most(values: NDArray[np.int64], bound: int) -> int:
    """Return the last of some sorted values up to `bound`, or -1."""
    position = int(np.searchsorted(values, bound, side="right")) - 1
    return int(values[position]) if position >= 0 else -1


def _holds_answer(characters: tuple[int, int], question: Question) -> bool:
    """Return whether a window contains the whole answer, or the question has no answer."""
    if not question.answers:
        return True
    answer = question.answers[0]
    # The answer segment and the last window do not contain trailing blanks.
    end = answer.start + len(answer.text.rstrip())
    return characters[0] <= answer.start and end <= characters[1]


def _tree(
    context: _Context, window: tuple[int, int], branches: Sequence[Branch], passage: int
) -> Tree:
    return Tree(context.trunk(window), tuple(branches), passage, context.characters(window))


def _count(encoded: Encoded, passages: Sequence[Passage]) -> Encoded:
    counts = encoded.counts
    counts.passages = len(passages)
    counts.questions = sum(len(p.questions) for p in passages)
    counts.trees = len(encoded.trees)
    counts.examples = sum(len(tree.branches) for tree in encoded.trees)
    counts.tree_tokens = sum(map(len, encoded.trees))
    counts.separate_tokens = sum(tree.separate_length for tree in encoded.trees)
    return encoded
