"""The reader: a model that answers questions about a text, with places and probabilities.

`loraqa.reader` loads one.
"""

import hashlib
import logging
import math
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from threading import Event
from typing import Any

from loraqa.adapter.info import Calibration
from loraqa.answer.answered import Answered
from loraqa.answer.confidence import with_confidence
from loraqa.answer.decode import Prompts, Rules, Strategy, Written, split_no_answer
from loraqa.answer.journal import Journal
from loraqa.answer.locate import locate
from loraqa.answer.progress import Progress
from loraqa.answer.relevant import keep_relevant
from loraqa.answer.span import SpanSearch
from loraqa.answer.strategies import DEFAULT_STRATEGY, MAX_SAMPLES, parse_strategy
from loraqa.answer.windows import Chosen, Found, Window, choose, of_each_reading, reading
from loraqa.errors import InputError, LoraqaError, counted, quote
from loraqa.model.load import on_its_gpu
from loraqa.model.memory import explaining_lack_of_memory
from loraqa.model.runner import Runner
from loraqa.model.stop import stopping
from loraqa.prompt.defaults import DEFAULT_MAX_ANSWER_TOKENS, DEFAULT_STRIDE, DEFAULT_WINDOWS
from loraqa.prompt.encode import Encoded, PromptEncoder
from loraqa.prompt.plan import pack
from loraqa.prompt.segments import SegmentTokenizer
from loraqa.prompt.template import Template
from loraqa.prompt.tree import Tree
from loraqa.squad import Passage, Question

logger = logging.getLogger("loraqa")

# How far apart the bounds of an answer's probability are at most, where people look at them.
_SLACK = 0.1


def _unidentified() -> str:
    raise InputError("Only a reader from Reader.load knows its files; load it with Reader.load.")


@dataclass(frozen=True)
class Reader:
    """A model, and how its prompts are written.

    Attributes:
        runner: computes the model.
        tokenizer, template, max_length, stride, window_length: as for `PromptEncoder`.
        most_windows: how many windows of a long text are read for a question, those whose words
            match it best; None reads all.
        max_answer_tokens: the longest answer in tokens, its end included.
        learned_no_answer: whether the model has learned to say that a text holds no answer. Then
            the windows of a text are compared by odds (see `choose`).
        no_answer_threshold: from which probability on `answer` and `candidates` say "no answer";
            None is never.
        calibration: turns an answer's share of the probability into its confidence, if any.
        tokens_per_batch: how many tokens, read and written, are in memory at once.
        using: the context in which the model computes; of several adapters it chooses one.
        identify: returns the SHA-256 (hex) of everything that decides the answers besides prompts
            and strategy: the files of base model and adapter, dtype, device, accelerations,
            threads and versions. It reads the weights of a model without an adapter once more.
    """

    runner: Runner
    tokenizer: SegmentTokenizer
    template: Template
    max_length: int
    stride: int = DEFAULT_STRIDE
    window_length: int | None = None
    most_windows: int | None = DEFAULT_WINDOWS
    max_answer_tokens: int = DEFAULT_MAX_ANSWER_TOKENS
    learned_no_answer: bool = False
    no_answer_threshold: float | None = None
    calibration: Calibration | None = None
    tokens_per_batch: int = 16384
    using: Callable[[], AbstractContextManager[None]] = field(default=nullcontext, repr=False)
    identify: Callable[[], str] = field(default=_unidentified, repr=False)

    def answer(
        self,
        context: str,
        questions: Sequence[str],
        strategy: str | Strategy = DEFAULT_STRATEGY,
        *,
        seed: int = 0,
        stop: Event | None = None,
    ) -> list[Answered]:
        """Return one answer to each question about `context`; their ids are "0", "1", ...

        Raises:
            InputError: a text is blank or not valid Unicode, a question is too long, or there is
                no such strategy.
            ComputationStoppedError: another thread has set `stop`.
        """
        found = self.candidates(context, questions, 1, strategy, seed=seed, stop=stop)
        return [best for best, *_ in found]

    def candidates(
        self,
        context: str,
        questions: Sequence[str],
        count: int,
        strategy: str | Strategy = DEFAULT_STRATEGY,
        *,
        seed: int = 0,
        stop: Event | None = None,
        progress: Progress | None = None,
    ) -> list[list[Answered]]:
        """Return at most `count` answers to each question, best first.

        Span search returns the best spans, beam search its beams, a strategy that samples its
        samples, and greedy decoding a single answer. Answers that read the same are one; samples
        are ordered by their votes. Questions in capitals are read in small letters.

        Raises:
            InputError: as for `answer`, or `count` is out of range.
            ComputationStoppedError: another thread has set `stop`.
        """
        check_asked(context, questions)
        check_count(count)
        asked = tuple(
            Question(str(number), without_capitals(text)) for number, text in enumerate(questions)
        )
        chosen = parse_strategy(strategy) if isinstance(strategy, str) else strategy
        chosen = with_close_bounds(chosen)
        with stopping(self.runner.model, stop) if stop else nullcontext():
            found = self._choose([Passage(context, asked)], chosen, count, seed, progress, None)
        merged = [replace(each, answers=_merge_votes(each.answers, chosen.draws)) for each in found]
        return [each.above(self.no_answer_threshold)[:count] for each in merged]

    def read(
        self,
        passages: Sequence[Passage],
        strategy: Strategy,
        *,
        answers: int = 1,
        seed: int = 0,
        progress: Progress | None = None,
        journal: Journal | None = None,
    ) -> list[list[Answered]]:
        """Answer all questions of some passages, in their order.

        Each question gets `answers` answers; fewer, best first, if the strategy draws nothing and
        finds no more. Before them comes "no answer", if it is more probable than the threshold.
        Answers do not depend on the other questions, except for rounding. Batches in `journal` are
        not computed again, and the others are added to it.

        Raises:
            NoRoomError: questions leave no room for their contexts.
            InputError: answers leave no room for a context.
            LoraqaError: memory is out, or logits are not finite.
        """
        found = self._choose(passages, strategy, answers, seed, progress, journal)
        return [each.above(self.no_answer_threshold) for each in found]

    def _choose(
        self,
        passages: Sequence[Passage],
        strategy: Strategy,
        answers: int,
        seed: int,
        progress: Progress | None,
        journal: Journal | None,
    ) -> list[Chosen]:
        """Return the answers to all questions of some passages, and "no answer" to each."""
        windows = self._read_windows(passages, strategy, answers, seed, progress, journal)
        return [
            self._chosen(question, windows[index, question.id], strategy, answers)
            for index, passage in enumerate(passages)
            for question in passage.questions
        ]

    def _read_windows(
        self,
        passages: Sequence[Passage],
        strategy: Strategy,
        answers: int,
        seed: int,
        progress: Progress | None,
        journal: Journal | None,
    ) -> Mapping[tuple[int, str], Sequence[Window]]:
        """Return what was read from each window, by the number of the passage and the question."""
        trees = self._trees(passages)
        rows = strategy.rows * (answers if strategy.draws else 1)
        windows: dict[tuple[int, str], list[Window]] = defaultdict(list)
        # A question has a prompt for each window that is read.
        done, prompts = 0, sum(len(tree.branches) for tree in trees)
        questions = sum(len(passage.questions) for passage in passages)
        if progress:
            progress(done, questions)

        def note(of_batch: int) -> None:
            # 0 would be the beginning.
            if progress and done + of_batch:
                progress(questions * (done + of_batch) / prompts, questions)

        for together in pack(trees, self.tokens_per_batch, partial(self._cost, rows=rows)):
            contexts = [passages[tree.passage].context for tree in together]
            batch = _Batch(together, contexts, strategy, self._rules, answers, seed)
            read = self._recall(batch, journal, note) if journal else self._read(batch, note)
            for place, window in zip(batch.places, read, strict=True):
                windows[place].append(window)
            done += len(read)
            note(0)
        return windows

    def _chosen(
        self, question: Question, windows: Sequence[Window], strategy: Strategy, count: int
    ) -> Chosen:
        found = choose(
            question.id,
            windows,
            count,
            draws=strategy.draws,
            learned_no_answer=self.learned_no_answer,
        )
        if self.calibration is None:
            return found
        answers = [with_confidence(answer, self.calibration) for answer in found.answers]
        return Chosen(answers, with_confidence(found.no_answer, self.calibration))

    def _trees(self, passages: Sequence[Passage]) -> list[Tree]:
        """Encode the passages. Of a long text each question gets the windows that fit it best."""
        encoded = self.encoder.encode_prompts(passages, self.max_answer_tokens)
        self._note_windows(passages, encoded)
        return keep_relevant(encoded.trees, passages, self.most_windows)

    def count_prompts(self, passages: Sequence[Passage]) -> int:
        """Return how many prompts all questions have: one for each window that is read.

        Raises:
            InputError: a question leaves no room for a context.
        """
        return sum(len(tree.branches) for tree in self._trees(passages))

    def _recall(
        self, batch: "_Batch", journal: Journal, note: Callable[[int], None]
    ) -> list[Window]:
        """Return what was read for each prompt from the journal if it is there."""

        def compute() -> list[list[Any]]:
            return [window.to_json() for window in self._read(batch, note)]

        return [Window.from_json(kept) for kept in journal.once(batch.fingerprint, compute)]

    def _read(self, batch: "_Batch", note: Callable[[int], None]) -> list[Window]:
        """Return what is read for each prompt from its window alone; tell how many are answered."""
        with on_its_gpu(self.runner.model), self.using(), self._explaining_lack_of_memory():
            session, first = self.runner.prefill(batch.trees)
            logits, no_answer = split_no_answer(first, self.tokenizer.eos)
            prompts = Prompts(
                trees=batch.trees,
                contexts=batch.contexts,
                session=session,
                logits=logits,
                no_answer=no_answer,
                rules=batch.rules,
                answers=batch.answers,
                seed=batch.seed,
                note=note,
            )
            return _write(prompts, batch.strategy)

    def _note_windows(self, passages: Sequence[Passage], encoded: Encoded) -> None:
        """Log windows once for the same contexts, which may be read again and again."""
        trees = Counter(tree.passage for tree in encoded.trees)
        windowed = {passages[index].context for index, count in trees.items() if count > 1}
        if windowed <= self._noted:
            return
        self._noted.update(windowed)
        number = encoded.counts.windowed
        are = "is" if number == 1 else "are"
        note = (
            f"{number:,} of {counted(len(passages), 'context')} {are} too long for "
            f"{self.max_length:,} tokens, {self._why_so_long()}, and read in windows"
        )
        if self.window_length is not None:
            note += f" of up to {self.window_length:,}"
        most = self.most_windows
        if most is not None and max(trees.values()) > most:
            matching = "window that matches" if most == 1 else f"{most} windows that match"
            note += f"; for each question only the {matching} it best"
        logger.info(f"{note}.")

    def _why_so_long(self) -> str:
        """Say what `max_length` is: a training limits both lengths, a model one."""
        if self.window_length is None:
            return "the most that the model takes"
        return "the longest prompt of the training"

    @cached_property
    def encoder(self) -> PromptEncoder:
        """Writes the prompts."""
        return PromptEncoder(
            self.tokenizer, self.template, self.max_length, self.stride, self.window_length
        )

    @cached_property
    def _noted(self) -> set[str]:
        """The contexts whose windows were noted."""
        return set()

    @cached_property
    def _rules(self) -> Rules:
        return Rules(self.tokenizer, self.template, self.max_answer_tokens)

    def _cost(self, trees: Sequence[Tree], rows: int) -> int:
        """Count the tokens in memory while each question takes `rows` rows."""
        if rows > 1:
            trees = [replace(tree, branches=tree.branches * rows) for tree in trees]
        answers = sum(len(tree.branches) for tree in trees)
        return self.runner.size(trees) + answers * self.max_answer_tokens

    def _explaining_lack_of_memory(self) -> AbstractContextManager[None]:
        return explaining_lack_of_memory(
            "while answering",
            f"set tokens_per_batch (--tokens-per-batch; in a training, "
            f"optimisation.tokens_per_batch) lower than {self.tokens_per_batch}, ask for fewer "
            "samples or beams, or give shorter contexts",
        )


@dataclass(frozen=True)
class _Batch:
    """Trees that are answered together, and all that their answers depend on besides the model."""

    trees: Sequence[Tree]
    contexts: Sequence[str]
    strategy: Strategy
    rules: Rules
    answers: int
    seed: int

    @property
    def places(self) -> list[tuple[int, str]]:
        """The passage and the question of each prompt."""
        return [
            (tree.passage, branch.question_id) for tree in self.trees for branch in tree.branches
        ]

    @property
    def fingerprint(self) -> str:
        """SHA-256 (hex) of everything but the passages' numbers."""
        rules = self.rules
        how = (self.strategy, self.answers, self.seed, rules.max_answer_tokens)
        digest = hashlib.sha256(f"{how} {rules.template} {rules.tokenizer.fingerprint}".encode())
        for tree, context in zip(self.trees, self.contexts, strict=True):
            prompts = [(b.question_id, b.prompt.tolist(), b.log_prior) for b in tree.branches]
            digest.update(repr((context, tree.window, tree.trunk.tolist(), prompts)).encode())
        return digest.hexdigest()


def _write(prompts: Prompts, strategy: Strategy) -> list[Window]:
    """Return what `strategy` reads for each prompt.

    Raises:
        LoraqaError: logits are not finite. Nothing could be chosen by them.
    """
    if any(map(math.isnan, prompts.no_answer)):
        raise LoraqaError(
            "The model gives logits that are not finite for some questions; answer in another "
            "dtype (--dtype; in a training, model.dtype), such as float32, or train again with a "
            "lower learning rate."
        )
    rows = zip(prompts.rows(), strategy.write(prompts), prompts.no_answer, strict=True)
    return [
        Window(
            no_answer,
            tuple(_found(prompts.rules, context, tree.window, each) for each in written),
            next((each.searched for each in written), None),
            branch.log_prior,
        )
        for (tree, branch, context), written, no_answer in rows
    ]


def _found(rules: Rules, context: str, window: tuple[int, int], written: Written) -> Found:
    text = context[slice(*written.place)] if written.place else rules.text(written.tokens)
    start, end = written.place or locate(text, context, window) or (None, None)
    return Found(text, written.log_probability, len(written.tokens), start, end)


def _merge_votes(answers: Sequence[Answered], draws: bool) -> list[Answered]:
    """Make one of the answers that read the same. Order samples by their votes."""
    votes = Counter(reading(answer.text) for answer in answers)
    ranked = sorted(answers, key=lambda each: each.rank, reverse=True) if draws else answers
    best = [
        replace(answer, votes=votes[reading(answer.text)])
        for answer in of_each_reading(ranked, _text)
    ]
    return sorted(best, key=lambda answer: -answer.votes) if draws else best


def _text(answer: Answered) -> str:
    return answer.text


def with_close_bounds(strategy: Strategy) -> Strategy:
    """Let a span search go on until it knows how probable its answers are."""
    if isinstance(strategy, SpanSearch):
        return replace(strategy, slack=min(strategy.slack, _SLACK))
    return strategy


def without_capitals(question: str) -> str:
    """Return a question of several words in small letters if all its letters are capitals.

    Models have hardly seen text in capitals and read it much worse. A single word may be an
    abbreviation, and so may the only capitals among letters without case.
    """
    words = ["".join(filter(str.isalpha, word)) for word in question.split()]
    spoken = list(filter(None, words))
    shouted = len(spoken) > 1 and all(letter.isupper() for word in spoken for letter in word)
    return question.lower() if shouted else question


def check_count(count: int) -> None:
    """Raise `InputError` unless 1 to `MAX_SAMPLES` answers are wanted."""
    if not 1 <= count <= MAX_SAMPLES:
        raise InputError(f"{count} answers are out of range; give from 1 to {MAX_SAMPLES}.")


def check_asked(context: str, questions: Sequence[str]) -> None:
    """Raise `InputError` if a text is blank or not valid Unicode, or the questions are no list."""
    if isinstance(questions, str):
        raise InputError(f"The questions are one text; give a list, [{quote(questions)}].")
    _check_text("context", context)
    for question in questions:
        _check_text("question", question)


def _check_text(name: str, text: str) -> None:
    if not text.strip():
        raise InputError(f"The {name} is blank; give some text.")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InputError(
            f"The {name} holds half a character (a lone surrogate) at {error.start}; remove it."
        ) from None
    if "\0" in text:
        raise InputError(
            f"The {name} holds a NUL character (U+0000) at {text.index(chr(0))}; remove it."
        )
