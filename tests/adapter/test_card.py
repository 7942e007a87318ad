"""The model card of an adapter says how good it is, and how it was made."""

from typing import Any

import yaml
from tests.adapter.conftest import INFO

from loraqa.adapter.card import model_card
from loraqa.adapter.evaluation import Evaluation
from loraqa.squad import Overlap

MADE: dict[str, Any] = {
    "strategy": "span:32",
    "steps": 8,
    "training_seconds": 90,
    "data": {"source": "train.json", "sha256": "cd34", "questions": 11877},
    "shared": Overlap(0, 500, 0, 100),
    "command": "loraqa train --model gpt2",
    "settings_yaml": "lora:\n  rank: 7\n",
}


def test_the_card_holds_scores_settings_base_and_command() -> None:
    before, after = Evaluation(0, 1.0, 2.5, 500), Evaluation(6, 61.25, 72.5, 500)
    card = model_card(INFO, before=before, after=after, **MADE)
    _, front, text = card.split("---\n", 2)
    assert yaml.safe_load(front)["base_model"] == "/models/gpt2"
    for expected in [
        "| before training | 1.00 | 2.50 |",
        "| these weights, of step 6 | 61.25 | 72.50 |",
        "Answers by `span:32` to 500 dev questions",
        "8 optimizer steps (1.5 minutes) on the 11,877 questions",
        "`train.json` (sha256 of the passages: `cd34`)",
        "sha256 ab12",
        "    loraqa train --model gpt2",
        "```yaml\nlora:\n  rank: 7\n```",
    ]:
        assert expected in text
    assert "in the training data, too" not in text


def test_the_card_says_what_dev_and_training_data_share() -> None:
    scores = Evaluation(6, 100.0, 100.0, 500)
    shared = Overlap(1200, 1500, 3, 100)
    text = model_card(INFO, before=None, after=scores, **MADE | {"shared": shared})
    assert (
        "**1,200 of 1,500 dev questions and 3 of 100 dev contexts are in the training data, too: "
        "the scores are higher than on new texts.**"
    ) in text


def test_a_card_without_scores_says_why() -> None:
    assert "Not scored" in model_card(INFO, before=None, after=None, **MADE)
