"""One experiment: choose the questions, train, answer the dev data, keep the scores."""

import json
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from loraqa.answer.evaluate import evaluate, sample_questions
from loraqa.answer.strategies import parse_strategy
from loraqa.errors import InputError
from loraqa.files import write_text
from loraqa.finetuning import finetune
from loraqa.reader import Reader
from loraqa.squad import QADataset, Scores, read_passages, write_official
from loraqa.train.environment import environment
from loraqa.train.settings import RunSettings, load_settings
from study.experiments import STRATEGIES, Experiment
from study.readings import READINGS, Reading
from study.report import Results

_COMMAND = "python -m study"


class Study:
    """Where experiments find their data and leave their results.

    Args:
        model: the base model.
        train: the files to train on; the first is the one that smaller parts are taken from.
        dev: the file to score on.
        runs: the folder for runs, which can be resumed.
        results: where results are kept, one JSON file for each experiment.
    """

    def __init__(
        self, model: str, train: Sequence[Path], dev: Path, runs: Path, results: Results
    ) -> None:
        self._model, self._runs, self._results = model, runs, results
        self._train = [read_passages(str(path)) for path in train]
        self._dev = read_passages(str(dev))

    def do(self, experiment: Experiment) -> None:
        """Train and score, or go on where an interrupted experiment was."""
        reading = READINGS[experiment.reading]
        run = self._runs / experiment.id
        settings = self._settings(experiment, reading)
        began = (run / "settings.yaml").exists()
        result = finetune(
            settings, run, resume=began, command=_COMMAND, change=reading.change_runner
        )
        reader = Reader.load(run)
        reader = replace(reader, runner=reading.change_runner(reader.runner, reader.tokenizer))
        model, dev = reader.runner.model, self._dev
        if experiment.dev is not None:
            dev = sample_questions(dev, experiment.dev, seed=0)
        outcome = {
            "settings": experiment.all_settings,
            "reading": experiment.reading,
            "questions": experiment.questions,
            "steps": result.steps,
            "training_seconds": result.training_seconds,
            "loss": _losses(run),
            "answers": {name: _answers(reader, dev, name) for name in STRATEGIES},
            "environment": environment(model.device, model.dtype, _COMMAND),
        }
        # On one line: the scores of a question are not worth four.
        write_text(self._results.file(experiment), json.dumps(outcome))

    def _settings(self, experiment: Experiment, reading: Reading) -> RunSettings:
        data = self._questions(experiment)
        changed = reading.change_passages(data.passages)
        file = self._runs / "data" / f"{experiment.id}.json"
        file.parent.mkdir(parents=True, exist_ok=True)
        write_official(file, changed, "1.1")
        values = {
            # So that all questions count, and none is asked twice, unless an experiment says so.
            "data.held_out": 0,
            "data.negatives": 0,
            **experiment.all_settings,
            "model.source": self._model,
            "data.train": str(file),
            "checkpoint.every": 50,
        }
        return load_settings(overrides=[f"{key}={value}" for key, value in values.items()])

    def _questions(self, experiment: Experiment) -> QADataset:
        """Return the experiment's questions: a sample of the first file, or of all.

        Raises:
            InputError: the files do not have so many.
        """
        data = self._train[0]
        if experiment.questions > len(data.questions):
            passages = [passage for part in self._train for passage in part.passages]
            data = data.with_passages(passages)
        if experiment.questions > len(data.questions):
            raise InputError(
                f"The files to train on have {len(data.questions):,} questions, but this "
                f"experiment takes {experiment.questions:,}; name more files with --train."
            )
        return sample_questions(data, experiment.questions, experiment.seed)


def _losses(run: Path) -> list[tuple[int, float]]:
    """Return step and loss of each optimizer step."""
    records = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return [(r["step"], round(r["loss"], 4)) for r in records if "loss" in r]


def _answers(reader: Reader, dev: QADataset, strategy: str) -> dict[str, Any]:
    """Answer and score; F1 of each question is kept, so that scores can be compared in pairs."""
    began = time.perf_counter()
    evaluated = evaluate(reader, dev, parse_strategy(strategy))
    scores: Scores = evaluated.scores
    return {
        "exact_match": scores.exact_match,
        "f1": scores.f1,
        "total": scores.total,
        "seconds": time.perf_counter() - began,
        "by_question": {
            id: [int(score.exact_match), round(score.f1, 4)]
            for id, score in scores.by_question.items()
        },
    }
