"""What a training costs, known before it runs: work, memory, disk and time.

costs = estimate_costs(load_settings(overrides=["model.source=gpt2", "data.train=train.json"]))
print(costs.seconds["total"])
"""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from loraqa.answer.evaluate import evaluate, sample_questions
from loraqa.files import temporary_folder
from loraqa.finetuning.reading import SCORING
from loraqa.finetuning.ready import Ready, get_ready
from loraqa.lora.adapt import parameter_counts
from loraqa.model.memory import forget_peak_memory, peak_memory
from loraqa.model.runner import Runner
from loraqa.prompt.plan import BatchPlan, ChosenSteps, Step
from loraqa.prompt.segments import SegmentTokenizer
from loraqa.reader import Reader
from loraqa.report.time_left import SCORING_ONCE_TRAINED
from loraqa.squad import QADataset
from loraqa.train.data import TrainingData
from loraqa.train.loop import train
from loraqa.train.manifest import ADAPTER
from loraqa.train.run import Record, RunDirectory
from loraqa.train.schedule import total_epochs
from loraqa.train.settings import RunSettings
from loraqa.train.stopping import StoppedError

# So many dev questions are answered to time a scoring.
_TIMED_QUESTIONS = 50

# Steps are tried with this learning rate, so that the model that is scored is still the base.
_NEARLY_ZERO = 1e-12


@dataclass(frozen=True)
class Costs:
    """The costs of a training.

    Attributes:
        work: `steps` and `epochs`; of an epoch `questions`, `negatives`, `contexts`, `windows`,
            `tokens_as_trees` and `tokens_as_examples`; `trained_parameters` and `parameters`.
        memory: bytes of the frozen `weights`, of the `adapter` with its gradient and AdamW's means,
            of the `activations`, of the `rest` (of the process; of the GPU if it is used), and in
            `total`.
        disk: bytes of the `adapter`, of one `checkpoint`, of all `checkpoints` that are there at
            the same time at most, and in `total`.
        seconds: of the `training`, of the `first_scoring`, of all `later_scorings`, of the answers
            for `calibration_and_report` (None, and not in the total, if there are some and no dev
            data to time them by), and in `total`.
    """

    work: Mapping[str, float]
    memory: Mapping[str, int]
    disk: Mapping[str, int]
    seconds: Mapping[str, float | None]

    def to_json(self) -> dict[str, Any]:
        """Return everything as plain JSON values."""
        return asdict(self)


def estimate_costs(
    settings: RunSettings,
    *,
    prepare: Callable[[RunSettings], TrainingData] | None = None,
    change: Callable[[Runner, SegmentTokenizer], Runner] | None = None,
) -> Costs:
    """Do all that a training does before its first step, and try a few steps and answers.

    Only caches are left behind. Arguments and errors are those of `finetune`.
    """
    settings = _without_kept_trunks(settings.with_full_paths().with_template())
    ready = get_ready(settings, prepare=prepare, change=change)
    # Calibration would refuse such a question only after the training.
    ready.reader.count_prompts(ready.training.held_out.passages)
    device = ready.runner.model.device
    loading = peak_memory(device)
    tried = _try_steps(ready, settings)
    seconds = _seconds(ready, tried.seconds_per_token)
    return Costs(
        _work(ready, settings),
        _memory(ready, tried.growth, max(loading, peak_memory(device))),
        _disk(ready, settings, tried),
        seconds,
    )


def _without_kept_trunks(settings: RunSettings) -> RunSettings:
    """Let every step cost what it costs in the first epoch."""
    speed = settings.speed.model_copy(update={"kept_trunks": 0.0})
    return settings.model_copy(update={"speed": speed})


@dataclass(frozen=True)
class _Tried:
    """What some steps have shown; sizes, and how much the memory grew, are in bytes."""

    seconds_per_token: float
    growth: int
    adapter_size: int
    checkpoint_size: int


def _try_steps(ready: Ready, settings: RunSettings) -> _Tried:
    """Train for some steps in a temporary folder."""
    records: list[Record] = []
    steps = _representative(ready.plan)
    device = ready.runner.model.device
    forget_peak_memory(device)
    before = peak_memory(device)
    with temporary_folder() as folder:
        run = RunDirectory(folder)
        run.start(settings, {}, {})
        try:
            train(
                ready.runner, ChosenSteps(steps), _of_trial(settings), run, on_record=records.append
            )
        except StoppedError as stopped:
            told = f"Stopped by {stopped.received.name}; a dry run keeps nothing."
            raise StoppedError(told, stopped.received) from None
        (checkpoint,) = run.checkpoints.iterdir()
        sizes = _size(checkpoint / ADAPTER), _size(checkpoint)
    growth = peak_memory(device) - before
    # The first step compiles kernels, and says little about the others.
    seconds: float = sum(record["seconds"] for record in records[1:])
    return _Tried(seconds / sum(map(ready.plan.tokens, steps[1:])), growth, *sizes)


def _representative(plan: BatchPlan) -> list[Step]:
    """Return the step with the largest micro-batch, then three that stand for all by their size."""
    steps = sorted(plan.sample(), key=plan.tokens)
    largest = max(steps, key=lambda step: max(map(plan.size, step)))
    return [largest, *(steps[sixth * len(steps) // 6] for sixth in (1, 3, 5))]


def _of_trial(settings: RunSettings) -> RunSettings:
    """Return settings with which the steps that are tried change nothing, and are all there is."""
    trial = {"epochs": 1, "max_steps": None, "learning_rate": _NEARLY_ZERO}
    optimisation = settings.optimisation.model_copy(update=trial)
    # The last step has a checkpoint in any case.
    checkpoint = settings.checkpoint.model_copy(update={"every": 1000})
    return settings.model_copy(update={"optimisation": optimisation, "checkpoint": checkpoint})


def _work(ready: Ready, settings: RunSettings) -> dict[str, float]:
    counts, parameters = ready.training.encoded.counts, parameter_counts(ready.runner.model)
    negatives = ready.training.facts["negatives"]
    steps, epochs = ready.work.steps, total_epochs(ready.plan, settings.optimisation)
    return {
        "steps": steps,
        "epochs": epochs * steps / sum(map(ready.plan.steps_in, range(epochs))),
        "questions": counts.questions - negatives,
        "negatives": negatives,
        "contexts": counts.passages,
        "windows": counts.trees,
        "tokens_as_trees": counts.tree_tokens,
        "tokens_as_examples": counts.separate_tokens,
        "trained_parameters": parameters.trainable,
        "parameters": parameters.total,
    }


def _memory(ready: Ready, growth: int, total: int) -> dict[str, int]:
    """Return the parts of the memory, of which the tried steps took `growth`."""
    sizes = [(p.nbytes, p.requires_grad) for p in ready.runner.model.parameters()]
    trained = sum(size for size, is_trained in sizes if is_trained)
    weights = sum(size for size, is_trained in sizes if not is_trained)
    # The steps brought the gradient and two means; the adapter was there.
    adapter, activations = 4 * trained, max(growth - 3 * trained, 0)
    rest = max(total - weights - adapter - activations, 0)
    parts = {"weights": weights, "adapter": adapter, "activations": activations, "rest": rest}
    return parts | {"total": sum(parts.values())}


def _disk(ready: Ready, settings: RunSettings, tried: _Tried) -> dict[str, int]:
    steps, options = ready.work.steps, settings.checkpoint
    saved = {*range(options.every, steps, options.every), *ready.work.scorings, steps} - {0}
    # Each of the newest may name another best one, and a new one is written before others go.
    most = (2 if ready.sample else 1) * options.keep + 1
    checkpoints = min(most, len(saved)) * tried.checkpoint_size
    return {
        "adapter": tried.adapter_size,
        "checkpoint": tried.checkpoint_size,
        "checkpoints": checkpoints,
        "total": tried.adapter_size + checkpoints,
    }


def _seconds(ready: Ready, per_token: float) -> dict[str, float | None]:
    """Return the time of each part of the work."""
    work = ready.work
    first, after = 0.0, None if work.answered_after else 0.0
    if ready.sample is not None:
        per_question = _seconds_per_question(ready.reader, ready.sample)
        first = per_question * len(ready.sample.order)
        after = SCORING_ONCE_TRAINED * per_question * work.answered_after
    parts = {
        "training": work.steps * work.tokens_per_step * per_token,
        "first_scoring": first,
        "later_scorings": SCORING_ONCE_TRAINED * first * len(work.scorings[1:]),
        "calibration_and_report": after,
    }
    return parts | {"total": sum(filter(None, parts.values()))}


def _seconds_per_question(reader: Reader, sample: QADataset) -> float:
    """Return how long a question takes before the training."""
    # Scoring refuses a question that leaves no room for a context.
    reader.count_prompts(sample.passages)
    some = sample_questions(sample, _TIMED_QUESTIONS, seed=0)
    return evaluate(reader, some, SCORING).seconds / len(some.order)


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
