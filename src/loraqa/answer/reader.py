"""The reader: a model that answers questions about a text, with places and probabilities.

reader = Reader.load("runs/squad")
for answer in reader.answer("Salt came from the hills.", ["Where did salt come from?"]):
    print(answer.text, answer.start, answer.end, answer.log_probability)
"""

import logging
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path

from loraqa.answer.decode import Prompts, Rules, Strategy, Written
from loraqa.answer.load import load_model
from loraqa.answer.locate import locate
from loraqa.answer.progress import Progress
from loraqa.answer.strategies import parse_strategy
from loraqa.errors import InputError
from loraqa.model.choose import choose_runner
from loraqa.model.memory import explaining_lack_of_memory, tokens_at_once
from loraqa.model.prepacked import prepack
from loraqa.model.runner import Runner
from loraqa.model.source import position_limit
from loraqa.prompt.defaults import DEFAULT_MAX_ANSWER_TOKENS, DEFAULT_STRIDE
from loraqa.prompt.encode import EncodingCounts, PromptEncoder
from loraqa.prompt.plan import pack
from loraqa.prompt.segments import SegmentTokenizer
from loraqa.prompt.template import Template
from loraqa.prompt.tree import Branch, Tree
from loraqa.squad import Passage, Question

logger = logging.getLogger("loraqa")


@dataclass(frozen=True, slots=True)
class Answered:
    """An answer to a question.

    Attributes:
        question_id: the question.
        text: the answer; empty where the model finds none.
        log_probability: of its tokens and the one that ends it, summed, in nats, in the model's
            own distribution.
        mean_log_probability: the same divided by their number.
        start, end: where it stands in the context (see `locate`); None where it does not.
        no_answer_probability: of ending the answer before it starts; of several windows, in the
            one where that is least probable.
    """

    question_id: str
    text: str
    log_probability: float
    mean_log_probability: float
    start: int | None
    end: int | None
    no_answer_probability: float


@dataclass(frozen=True)
class Reader:
    """A model, and how questions are put to it.

    Attributes:
        runner: the model.
        tokenizer, template, max_length, stride: as for `PromptEncoder`.
        max_answer_tokens: the longest answer, the token that ends it counted in.
        no_answer: whether the model has learned to say so where the context holds no answer.
        tokens_per_batch: how many tokens, read and written, are in memory at once.
    """

    runner: Runner
    tokenizer: SegmentTokenizer
    template: Template
    max_length: int
    stride: int = DEFAULT_STRIDE
    max_answer_tokens: int = DEFAULT_MAX_ANSWER_TOKENS
    no_answer: bool = False
    tokens_per_batch: int = 16384

    @classmethod
    def load(
        cls,
        source: str | Path,
        *,
        base: str | Path | None = None,
        dtype: str | None = None,
        device: str = "auto",
    ) -> "Reader":
        """Load a run, an adapter folder, a merged model, or a model that was not fine-tuned.

        The arguments and errors are those of `load_model`. Prompts are written as in training,
        for a model that was not fine-tuned by the default template. On a CPU its model only
        answers: it can be neither trained nor saved (see `prepack`).
        """
        loaded = load_model(source, base=base, dtype=dtype, device=device)
        prepack(loaded.model)
        tokenizer = SegmentTokenizer(loaded.tokenizer)
        info = loaded.info
        tokens = tokens_at_once(loaded.model)
        if info is None:
            limit = position_limit(loaded.model.config)
            runner = choose_runner(loaded.model, limit)
            return cls(runner, tokenizer, Template(), limit, tokens_per_batch=tokens)
        return cls(
            choose_runner(loaded.model, info.max_length),
            tokenizer,
            Template(info.template),
            info.max_length,
            info.stride,
            info.max_answer_tokens,
            no_answer=info.version == "2.0",
            tokens_per_batch=tokens,
        )

    def answer(
        self,
        context: str,
        questions: Sequence[str],
        strategy: str | Strategy = "greedy",
        *,
        seed: int = 0,
    ) -> list[Answered]:
        """One answer to each question about `context`, in their order; their ids are "0", "1", ...

        Raises:
            InputError: a text is blank or not valid Unicode, a question is too long, or there is
                no such strategy.
        """
        check_asked(context, questions)
        asked = tuple(Question(str(number), text) for number, text in enumerate(questions))
        chosen = parse_strategy(strategy) if isinstance(strategy, str) else strategy
        return [first for first, *_ in self.read([Passage(context, asked)], chosen, seed=seed)]

    def read(
        self,
        passages: Sequence[Passage],
        strategy: Strategy,
        *,
        samples: int = 1,
        seed: int = 0,
        progress: Progress | None = None,
    ) -> list[list[Answered]]:
        """Answer all questions of some passages, in their order.

        Each gets `samples` answers, or a single one where nothing is drawn. They do not depend on
        what else is asked, but for rounding.

        Raises:
            InputError: a question leaves no room for a context.
            LoraqaError: memory is out.
        """
        encoder = PromptEncoder(self.tokenizer, self.template, self.max_length, self.stride)
        encoded = encoder.encode_prompts(passages, self.max_answer_tokens)
        self._note_windows(encoded.counts)
        rows = strategy.rows * (samples if strategy.draws else 1)
        windows: dict[tuple[int, str], list[list[Answered]]] = defaultdict(list)
        done = 0
        for trees in pack(encoded.trees, self.tokens_per_batch, partial(self._cost, rows=rows)):
            contexts = [passages[tree.passage].context for tree in trees]
            with self._explaining_lack_of_memory():
                session = self.runner.session(trees)
                logits = session.prefill()
                prompts = Prompts(trees, contexts, session, logits, self._rules, samples, seed)
                for tree, branch, answers in _write(prompts, strategy):
                    windows[tree.passage, branch.question_id].append(answers)
            done += len(logits)
            if progress:
                progress(done, encoded.counts.examples)
        return [
            _merge(windows[index, question.id])
            for index, passage in enumerate(passages)
            for question in passage.questions
        ]

    def _note_windows(self, counts: EncodingCounts) -> None:
        """Say it once of the same data, which are read again and again while training."""
        note = (
            f"{counts.windowed:,} of {counts.passages:,} contexts are longer than "
            f"{self.max_length:,} tokens allow and are read in windows."
        )
        if counts.windowed and note not in self._noted:
            self._noted.add(note)
            logger.info(note)

    @cached_property
    def _noted(self) -> set[str]:
        return set()

    @cached_property
    def _rules(self) -> Rules:
        return Rules(self.tokenizer, self.template, self.max_answer_tokens, self.no_answer)

    def _cost(self, trees: Sequence[Tree], rows: int) -> int:
        """Tokens in memory while each question takes `rows` rows of the computation."""
        if rows > 1:
            trees = [replace(tree, branches=tree.branches * rows) for tree in trees]
        answers = sum(len(tree.branches) for tree in trees)
        return self.runner.size(trees) + answers * self.max_answer_tokens

    def _explaining_lack_of_memory(self) -> AbstractContextManager[None]:
        return explaining_lack_of_memory(
            "while answering",
            f"set Reader.tokens_per_batch lower than {self.tokens_per_batch}, ask for fewer "
            "samples or beams, or give shorter contexts",
        )


def _write(prompts: Prompts, strategy: Strategy) -> Iterator[tuple[Tree, Branch, list[Answered]]]:
    """The answers to each prompt, from its window alone."""
    no_answer = prompts.logits.float().softmax(dim=-1)[:, prompts.rules.tokenizer.eos].tolist()
    rows = zip(prompts.rows(), strategy.write(prompts), no_answer, strict=True)
    for (tree, branch, context), answers, probability in rows:
        in_window = partial(_answered, prompts.rules, branch.question_id, context, tree.window)
        yield tree, branch, [in_window(written, probability) for written in answers]


def _answered(
    rules: Rules,
    question_id: str,
    context: str,
    window: tuple[int, int],
    written: Written,
    no_answer_probability: float,
) -> Answered:
    place = written.place
    text = context[slice(*place)] if place else rules.text(written.tokens)
    start, end = place or locate(text, context, window) or (None, None)
    return Answered(
        question_id,
        text,
        written.log_probability,
        written.log_probability / len(written.tokens),
        start,
        end,
        no_answer_probability,
    )


def _merge(windows: Sequence[Sequence[Answered]]) -> list[Answered]:
    """Choose among what the windows of a context gave, sample by sample.

    An answer comes before "no answer", which every window without it rightly says; of several
    answers the most probable is taken.
    """
    no_answer = min(answers[0].no_answer_probability for answers in windows)
    best = (
        max(candidates, key=lambda answer: (answer.text != "", answer.log_probability))
        for candidates in zip(*windows, strict=True)
    )
    return [replace(answer, no_answer_probability=no_answer) for answer in best]


def check_asked(context: str, questions: Sequence[str]) -> None:
    """Raise `InputError` where a text is blank or not valid Unicode."""
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
