"""What a model would answer without the context, against transformers' own forward pass."""

from pathlib import Path
from statistics import fmean

import numpy as np
import pytest
import torch
from study.contrast import _by_alpha, blind_log_probabilities
from tests.answer.conftest import DATA
from transformers import AutoModelForCausalLM, AutoTokenizer

from loraqa.answer.span import SpanSearch
from loraqa.reader import Reader


def test_blind_log_probabilities_are_those_of_prompts_without_a_context(tiny_folder: Path) -> None:
    reader = Reader.load(tiny_folder, dtype="float32", without="all")
    found = reader.read(DATA.passages, SpanSearch(), answers=3)
    blind = blind_log_probabilities(reader, DATA.passages, found)
    tokenizer = AutoTokenizer.from_pretrained(tiny_folder)
    model = AutoModelForCausalLM.from_pretrained(tiny_folder)
    for question, answers, actual in zip(DATA.questions, found, blind, strict=True):
        assert len(answers) == len(actual)
        for answer, log_probability in zip(answers, actual, strict=True):
            prompt = [
                id
                for text in ("Context:", f" Question: {question.text} Answer:")
                for id in tokenizer(text).input_ids
            ]
            ids = [*tokenizer(f" {answer.text}").input_ids, tokenizer.eos_token_id]
            with torch.no_grad():
                logits = model(torch.tensor([prompt + ids])).logits[0, len(prompt) - 1 : -1]
            expected = logits.log_softmax(-1)[range(len(ids)), ids].sum()
            assert log_probability == pytest.approx(float(expected), rel=1e-4)


def test_an_answer_that_is_certain_without_the_context_loses_by_contrast(
    tiny_folder: Path,
) -> None:
    reader = Reader.load(tiny_folder, without="all")
    found = reader.read(DATA.passages, SpanSearch(), answers=4)
    blind = [np.array([0.0, *[-1000.0] * (len(answers) - 1)]) for answers in found]
    plain, *contrasted = _by_alpha(DATA, found, blind)

    def exact_match(place: int) -> float:
        """Return the share of right answers among those of this place, or else the last."""
        chosen = [answers[min(place, len(answers) - 1)].text for answers in found]
        pairs = zip(chosen, DATA.questions, strict=True)
        return 100 * fmean(text in question.golds for text, question in pairs)

    assert plain["alpha"] == 0
    assert plain["exact_match"] == pytest.approx(exact_match(0))
    for each in contrasted:
        assert each["exact_match"] == pytest.approx(exact_match(1))
