"""Who runs against whom, how often, and what is to be reached."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.base import MAX_ANSWER_TOKENS, Task
from benchmarks.harness import Conclusion, Contender, Groups, Job, Suite, Target, best


@dataclass(frozen=True)
class Scale:
    """How much is measured.

    Attributes:
        questions: of an optimizer step.
        rounds: how often the contenders take turns.
        adapters: which adapters are trained.
        batches: rows in a batch that P3 tries.
        kinds: how P3 and P4 try to compute in bf16.
        layouts: what P4 tries, see `peers.sft`.
        answered: questions of the dev set to answer.
        answer_batches: rows in a batch that `generate` tries.
        answer_tokens: how long answers are.
        loop_steps: optimizer steps in which the loop's overhead is measured.
    """

    questions: int
    rounds: int
    adapters: Sequence[str]
    batches: Sequence[int]
    kinds: Sequence[str]
    layouts: Sequence[str]
    answered: int
    answer_batches: Sequence[int]
    answer_tokens: Sequence[int]
    loop_steps: int


QUICK = Scale(
    questions=12,
    rounds=1,
    adapters=["all-linear"],
    batches=[4, 12],
    kinds=["bfloat16"],
    layouts=["padding-free"],
    answered=24,
    answer_batches=[24],
    answer_tokens=[MAX_ANSWER_TOKENS],
    loop_steps=4,
)
FULL = Scale(
    questions=64,
    rounds=3,
    adapters=["all-linear", "c_attn"],
    batches=[4, 8, 16, 32],
    kinds=["autocast", "bfloat16"],
    layouts=["padded", "padding-free", "packed"],
    answered=256,
    answer_batches=[16, 64, 128],
    answer_tokens=[MAX_ANSWER_TOKENS, 6],
    loop_steps=10,
)

PADDED_ROWS = 8
P1, P2, P3 = "P1 Trainer fp32", "P2 Trainer bf16", "P3 Trainer bf16, by length"
P4, P5 = "P4 SFTTrainer bf16", "P5 our padded path"
OURS_FP32, OURS_BF16 = "ours fp32", "ours bf16"
RATE_FP32, RATE_BF16 = "matrix products fp32", "matrix products bf16"

# Tokens of one of our batches, at which the machine's rate is measured.
_BATCH_TOKENS = 4096
_SCORED = 10_570
_CHECKPOINT_EVERY = 200


def all_suites(folder: Path, scale: Scale, *, full: bool) -> list[Suite]:
    """Everything, in the order in which it runs; `folder` holds `base.prepare`'s models."""
    gpt2 = str(folder / "gpt2")
    return [
        *(training(gpt2, adapter, scale) for adapter in scale.adapters),
        single(gpt2, scale),
        *(evaluation(gpt2, tokens, scale) for tokens in scale.answer_tokens),
        running(gpt2, scale),
        starting(gpt2),
        scoring(gpt2),
        *([scaling(folder)] if full else []),
    ]


def training(folder: str, adapter: str, scale: Scale) -> Suite:
    """Optimizer steps on the same questions, everybody's."""
    name = f"training-{adapter}"
    fp32 = Task(folder, adapter, "train.json", 1, "float32", f"{folder}/{name}.safetensors")
    bf16 = Task(folder, adapter, "train.json", 1, "bfloat16", fp32.reference)
    return Suite(
        name,
        [_write("train.json", folder, "write_sample", split="train", questions=scale.questions)],
        {
            P1: [_trainer(fp32, "float32", PADDED_ROWS, "random")],
            P2: [
                _trainer(bf16, kind, PADDED_ROWS, "random")
                for kind in ("autocast", "bfloat16", "bfloat16 and autocast")
                if kind in scale.kinds or kind != "bfloat16 and autocast"
            ],
            P3: _by_length(bf16, scale),
            P4: [_sft(bf16, layout) for layout in scale.layouts],
            P5: [Job("bf16", "ours.padded", {"task": asdict(bf16)})],
            OURS_FP32: [Job("trees", "ours.trees", {"task": asdict(fp32)})],
            OURS_BF16: [Job("trees", "ours.trees", {"task": asdict(bf16)})],
            RATE_FP32: [_rate(fp32)],
            RATE_BF16: [_rate(bf16)],
        },
        scale.rounds,
        _conclude_training,
    )


def single(folder: str, scale: Scale) -> Suite:
    """One question per context: nothing to share."""
    name = "one-question"
    task = Task(
        folder, "all-linear", "single.json", 1, "bfloat16", f"{folder}/{name}.safetensors"
    )
    return Suite(
        name,
        [_write("single.json", folder, "write_single", questions=scale.questions)],
        {
            P3: _by_length(task, scale),
            OURS_BF16: [Job("trees", "ours.trees", {"task": asdict(task)})],
        },
        scale.rounds,
        _conclude_single,
    )
