"""A line break ends an answer only after its first word, whatever the strategy.

The model is a Markov chain: the next token depends on the last one alone, so every answer's
probability is known.
"""

from itertools import product
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from loraqa.answer.beam import BeamSearch
from loraqa.answer.decode import Ends, Greedy, Prompts, Rules, Written
from loraqa.answer.strategies import parse_strategy
from loraqa.prompt.template import Template
from loraqa.prompt.tree import Branch, Tree

# Their texts; the token after the last one starts every answer.
VOCABULARY = ["<eos>", "\n", " ", "word", "other", "full stop.\n"]
EOS, BREAK, BLANK, WORD, OTHER, STOP = range(6)
ENDING = {EOS, STOP}
# A beam search needs as many ids as beams; these have no probability.
UNUSED = 30
SIZE = len(VOCABULARY) + UNUSED


class Vocabulary:
    eos = EOS
    blanks = (BREAK, BLANK)
    line_breaks = (BREAK, STOP)

    def decode(self, tokens: list[int]) -> str:
        return "".join(VOCABULARY[token] for token in tokens).strip()


class Chain:
    """A decoding session of a Markov chain with logits (SIZE + 1, SIZE)."""

    def __init__(self, logits: Tensor) -> None:
        self.logits = logits

    def advance(self, tokens: Tensor) -> Tensor:
        return self.logits[tokens]

    def select(self, rows: Tensor) -> None: ...


def prompts(logits: Tensor, limit: int, samples: int = 1) -> Prompts:
    rules = Rules(Vocabulary(), Template(), limit)  # type: ignore[arg-type]
    none = torch.empty(0, dtype=torch.int32).numpy()
    tree = Tree(none, (Branch("q", none, none),), 0, (0, 0))
    chain = Chain(logits)
    return Prompts([tree], [""], chain, logits[-1:], [0.0], rules, samples, 0)  # type: ignore[arg-type]


def leading_to(*path: int) -> Tensor:
    """Logits that make a path of different transitions the most probable one."""
    logits = torch.zeros(SIZE + 1, SIZE)
    for before, after in zip((SIZE, *path), path, strict=False):
        logits[before, after] = 5.0
    return logits


def ends_where_it_should(tokens: tuple[int, ...], limit: int) -> bool:
    """The rule, token by token."""
    begun = False
    for index, token in enumerate(tokens):
        ended = token in ENDING or (token == BREAK and begun)
        begun |= token in (WORD, OTHER)
        if ended or index + 1 == limit:
            return index + 1 == len(tokens)
    return False


def random_logits(seed: int) -> Tensor:
    logits = torch.randn(SIZE + 1, SIZE, generator=torch.Generator().manual_seed(seed))
    logits[:, len(VOCABULARY) :] = -60.0
    # Answers that begin with a line break are usual here.
    logits[-1, BREAK] += 2
    return logits


def log_probability(logits: Tensor, tokens: tuple[int, ...]) -> float:
    log_probs = logits.double().log_softmax(dim=-1)
    pairs = zip((SIZE, *tokens), tokens, strict=False)
    return float(sum(log_probs[before, after] for before, after in pairs))


@pytest.mark.parametrize("strategy", [Greedy(), BeamSearch(3), parse_strategy("top-k:1")])
def test_line_breaks_and_blanks_before_the_first_word_are_skipped(strategy: object) -> None:
    asked = prompts(leading_to(BREAK, BLANK, WORD, BREAK), 8)
    # After the second line break the chain would go on as after the first.
    ((written,),) = strategy.write(asked)  # type: ignore[attr-defined]
    assert written.tokens == (BREAK, BLANK, WORD, BREAK)
    assert asked.rules.text(written.tokens) == "word"


def test_a_token_with_a_line_break_and_text_ends_an_answer_anywhere() -> None:
    ((written,),) = Greedy().write(prompts(leading_to(STOP), 8))
    assert written.tokens == (STOP,)


def test_only_blanks_up_to_the_limit_are_an_empty_answer() -> None:
    logits = torch.zeros(SIZE + 1, SIZE)
    logits[:, BREAK] = 5.0
    asked = prompts(logits, 4)
    ((written,),) = Greedy().write(asked)
    assert written.tokens == (BREAK,) * 4
    assert asked.rules.text(written.tokens) == ""


@pytest.mark.parametrize("seed", range(20))
def test_a_wide_beam_finds_the_best_of_all_answers(seed: int) -> None:
    logits, limit = random_logits(seed), 3
    every = (
        tokens
        for length in range(1, limit + 1)
        for tokens in product(range(len(VOCABULARY)), repeat=length)
        if ends_where_it_should(tokens, limit)
    )
    best = max(every, key=lambda tokens: log_probability(logits, tokens))
    ((written,),) = BeamSearch(32, length_penalty=0.0).write(prompts(logits, limit))
    assert written.tokens == best
    assert written.log_probability == pytest.approx(log_probability(logits, best), rel=1e-5)


@pytest.mark.parametrize("seed", range(5))
def test_samples_end_where_they_should(seed: int) -> None:
    logits, limit = random_logits(seed), 6
    (answers,) = parse_strategy("temperature:1").write(prompts(logits, limit, samples=500))
    assert all(ends_where_it_should(written.tokens, limit) for written in answers)
    assert any(_skips(written) for written in answers)


def _skips(written: Written) -> bool:
    return written.tokens[0] == BREAK and WORD in written.tokens


def test_ids_beyond_the_logits_do_no_harm() -> None:
    tokenizer = SimpleNamespace(eos=0, blanks=[1, 9], line_breaks=[1, 8])
    rules = Rules(tokenizer, Template(), 5)  # type: ignore[arg-type]
    ends = Ends(rules, torch.zeros(1, 4))
    begun = torch.tensor([False, True])
    assert ends.after(begun).tolist() == [[True, False, False, False], [True, True, False, False]]
