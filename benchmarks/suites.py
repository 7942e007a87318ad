"""Who runs against whom, how often, and what is to be reached."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace

from benchmarks.base import MAX_ANSWER_TOKENS, Task
from benchmarks.harness import (
    Conclusion,
    Contender,
    Groups,
    Side,
    Suite,
    at_least,
    at_most,
    best,
)

P1, P2, P3 = "P1: Trainer, fp32", "P2: Trainer, bf16", "P3: Trainer, bf16, by length"
P4, P5 = "P4: SFTTrainer, bf16", "P5: our padded path, bf16"
P4_PADDING_FREE, P4_PACKED = "P4, padding-free", "P4, packed"
OURS_FP32, OURS_BF16 = "ours, fp32", "ours, bf16"
MACHINE = "the machine"
GENERATE_FP32, GENERATE_BF16 = "generate, fp32", "generate, bf16"

_PEER_ROWS = 8
# Of the whole of SQuAD v1.1: its train split, and its dev split.
_QUESTIONS = 87_599
_SCORED = 10_570
_CHECKPOINT_EVERY = 200


@dataclass(frozen=True)
class Scale:
    """How much is measured.

    Attributes:
        questions: of an optimizer step.
        rounds: how often the sides take turns.
        steps: optimizer steps that are timed each time, after one that warms up.
        adapters: which adapters are trained.
        kinds: how P2 tries to compute in bf16, see `peers.PRECISIONS`.
        faster_kinds: those of them that P3 and P4 try.
        batches: how many rows in a batch P3 and P4 try.
        answered: questions of the dev set to answer.
        answer_batches: how many rows in a batch `generate` tries.
        answer_tokens: how long answers are, one suite for each.
        loop_steps: optimizer steps over which the loop's overhead is measured.
    """

    questions: int
    rounds: int
    steps: int
    adapters: Sequence[str]
    kinds: Sequence[str]
    faster_kinds: Sequence[str]
    batches: Sequence[int]
    answered: int
    answer_batches: Sequence[int]
    answer_tokens: Sequence[int]
    loop_steps: int


QUICK = Scale(
    questions=12,
    rounds=1,
    steps=1,
    adapters=["all-linear"],
    kinds=["bfloat16 and autocast"],
    faster_kinds=["bfloat16 and autocast"],
    batches=[4],
    answered=24,
    answer_batches=[24],
    answer_tokens=[MAX_ANSWER_TOKENS],
    loop_steps=4,
)
FULL = Scale(
    questions=32,
    rounds=2,
    steps=1,
    adapters=["all-linear", "c_attn"],
    kinds=["autocast", "bfloat16", "bfloat16 and autocast"],
    faster_kinds=["bfloat16 and autocast", "bfloat16"],
    batches=[8, 4, 16],
    answered=128,
    answer_batches=[32, 16, 8, 64],
    answer_tokens=[MAX_ANSWER_TOKENS, 6],
    loop_steps=10,
)


def training(folder: str, adapter: str, scale: Scale) -> Suite:
    """Optimizer steps on the same questions for everybody, and the machine's rate beside them."""
    name = f"training-{adapter}"
    reference = f"{folder}/{name}.safetensors"
    fp32 = Task(folder, adapter, "train.json", scale.steps, "float32", reference)
    bf16 = replace(fp32, precision="bfloat16")
    return Suite(
        name,
        {"train.json": ("sample", {"split": "train", "questions": scale.questions})},
        {
            P1: trainer(fp32, ["float32"], [_PEER_ROWS], "random"),
            P2: trainer(bf16, scale.kinds, [_PEER_ROWS], "random"),
            P3: trainer(bf16, scale.faster_kinds, scale.batches, "group_by_length"),
            P4: _sft(bf16, scale.faster_kinds, "padded", scale.batches),
            **_other_layouts(bf16, scale),
            P5: Side("ours.padded", "rows by length", {"task": asdict(bf16)}),
            OURS_FP32: trees(fp32),
            OURS_BF16: trees(bf16),
            MACHINE: Side("machine.matrix_rate", "matrix products", {"task": asdict(bf16)}),
        },
        scale.rounds,
        _conclude_training,
    )


def single(folder: str, scale: Scale) -> Suite:
    """One question per context: nothing to share."""
    name = "training-one-question"
    reference = f"{folder}/{name}.safetensors"
    task = Task(folder, "all-linear", "single.json", scale.steps, "bfloat16", reference)
    return Suite(
        name,
        {"single.json": ("single", {"questions": scale.questions})},
        {
            P3: trainer(task, scale.faster_kinds, scale.batches, "group_by_length"),
            OURS_BF16: trees(task),
        },
        scale.rounds,
        _conclude_single,
    )


def evaluation(folder: str, answer_tokens: int, scale: Scale) -> Suite:
    """Greedy answers to dev questions; with random weights every answer runs to its limit."""

    def options(precision: str) -> dict[str, str | int]:
        return {
            "folder": folder,
            "adapter": "all-linear",
            "data": "dev.json",
            "precision": precision,
            "answer_tokens": answer_tokens,
        }

    def generate(precision: str) -> Side:
        batches = {"batch": scale.answer_batches}
        return Side("peers.generate", "batches of {batch}", options(precision), batches)

    return Suite(
        f"evaluation-{answer_tokens}-tokens",
        {"dev.json": ("sample", {"split": "dev", "questions": scale.answered})},
        {
            GENERATE_FP32: generate("float32"),
            GENERATE_BF16: generate("bfloat16"),
            OURS_FP32: Side("ours.read", "Reader", options("float32")),
            OURS_BF16: Side("ours.read", "Reader", options("bfloat16")),
        },
        scale.rounds,
        _conclude_evaluation,
    )


def whole(folder: str, scale: Scale) -> Suite:
    """What a run costs besides forward and backward, and whole commands."""
    task = Task(folder, "all-linear", "loop.json", scale.loop_steps, "bfloat16")
    start = Side(
        "commands.start",
        "loraqa train, to the first step",
        {"folder": folder, "train": f"{folder}/whole.json", "cache": f"{folder}/cache"},
    )
    return Suite(
        "whole",
        {
            "loop.json": ("sample", {"split": "train", "questions": scale.questions}),
            "whole.json": ("repeated", {"split": "train", "questions": _QUESTIONS}),
            "scored.json": ("repeated", {"split": "dev", "questions": _SCORED}),
        },
        {
            "loop": Side(
                "ours.overhead",
                "the loop of loraqa train",
                {"task": asdict(task), "checkpoint_every": _CHECKPOINT_EVERY},
            ),
            "first start": start,
            "second start": start,
            "score": Side(
                "commands.score", "loraqa score", {"folder": folder, "data": "scored.json"}
            ),
        },
        1,
        _conclude_whole,
    )


def trainer(task: Task, kinds: Sequence[str], batches: Sequence[int], sampling: str) -> Side:
    """PEFT in transformers' Trainer."""
    return Side(
        "peers.trainer",
        "{kind}, batches of {batch}",
        {"task": asdict(task), "sampling": sampling},
        {"kind": kinds, "batch": batches},
    )


def trees(task: Task, tokens_per_batch: int | None = None) -> Side:
    """loraqa."""
    return Side("ours.trees", "trees", {"task": asdict(task), "tokens_per_batch": tokens_per_batch})


def _other_layouts(task: Task, scale: Scale) -> dict[str, Side]:
    """Padding-free and packed rows, in the full run alone: padded ones were faster."""
    if scale is QUICK:
        return {}
    return {
        P4_PADDING_FREE: _sft(task, scale.faster_kinds, "padding-free", scale.batches),
        # A packed row is as long as a batch is to be.
        P4_PACKED: _sft(task, scale.faster_kinds, "packed", [1]),
    }


def _sft(task: Task, kinds: Sequence[str], layout: str, batches: Sequence[int]) -> Side:
    return Side(
        "peers.sft",
        "{kind}, batches of {batch}",
        {"task": asdict(task), "layout": layout},
        {"kind": kinds, "batch": batches},
    )


def _conclude_training(groups: Groups) -> Conclusion:
    chosen = _fastest(groups)
    ours, ours_fp32 = chosen[OURS_BF16], chosen[OURS_FP32]
    ratios = {
        "ours bf16 / P1": _faster(ours, chosen[P1]),
        "ours bf16 / P2": _faster(ours, chosen[P2]),
        "ours bf16 / best of P3, P4": _faster(ours, best(_by_length(chosen))),
        "ours fp32 / P1": _faster(ours_fp32, chosen[P1]),
        "ours bf16 / P5": _faster(ours, chosen[P5]),
        "peak memory, ours bf16 / P1": _share(ours, chosen[P1], "peak_mib"),
        "growth of memory in a step, ours bf16 / P1": _share(ours, chosen[P1], "growth_mib"),
    }
    rates = _rates(chosen)
    return Conclusion(
        ratios | rates,
        [
            at_least("training, ours bf16 against P1", 15, ratios["ours bf16 / P1"]),
            at_least("against P2", 10, ratios["ours bf16 / P2"]),
            at_least("against the best of P3 and P4", 6, ratios["ours bf16 / best of P3, P4"]),
            at_least("ours fp32 against P1", 9, ratios["ours fp32 / P1"]),
            at_least(
                "share of the measured bf16 matrix rate",
                65,
                100 * rates[f"share of the machine's rate, {OURS_BF16}"],
                "%",
            ),
            at_most(
                "peak memory of a step, over that before it, against P1",
                0.5,
                ratios["growth of memory in a step, ours bf16 / P1"],
            ),
            at_most(
                "peak memory of the process against P1", 0.5, ratios["peak memory, ours bf16 / P1"]
            ),
        ],
    )


def _by_length(chosen: Mapping[str, Contender]) -> list[Contender]:
    names = (P3, P4, P4_PADDING_FREE, P4_PACKED)
    return [chosen[name] for name in names if name in chosen]


def _rates(chosen: Mapping[str, Contender]) -> dict[str, float]:
    """FLOPs needed a second over those of matrix products; peers need them for every example."""
    ours = chosen[OURS_BF16]
    shares = {}
    for name, precision, flops in [
        (P1, "float32", "flops_separate"),
        (P2, "bfloat16", "flops_separate"),
        (P3, "bfloat16", "flops_separate"),
        (P4, "bfloat16", "flops_separate"),
        (P5, "bfloat16", "flops_separate"),
        (OURS_FP32, "float32", "flops"),
        (OURS_BF16, "bfloat16", "flops"),
    ]:
        side = chosen[name]
        a_second = ours.median(flops) / ours.questions * side.questions / side.median_seconds
        machine = chosen[MACHINE].median(f"{precision}_gflops") * 1e9
        shares[f"share of the machine's rate, {name}"] = a_second / machine
    return shares


def _conclude_single(groups: Groups) -> Conclusion:
    chosen = _fastest(groups)
    ratio = _faster(chosen[OURS_BF16], chosen[P3])
    return Conclusion(
        {"one question per context, ours bf16 / P3": ratio},
        [at_least("one question per context: ours against P3", 2, ratio)],
    )


def _conclude_evaluation(groups: Groups) -> Conclusion:
    chosen = _fastest(groups)
    bf16 = _faster(chosen[OURS_BF16], best([chosen[GENERATE_FP32], chosen[GENERATE_BF16]]))
    ratios = {
        "answering, ours bf16 / generate at its best": bf16,
        "answering, ours fp32 / generate": _faster(chosen[OURS_FP32], chosen[GENERATE_FP32]),
        "answers that differ, fp32": _differing(chosen[OURS_FP32], chosen[GENERATE_FP32]),
        "answers that differ, bf16": _differing(chosen[OURS_BF16], chosen[GENERATE_BF16]),
    }
    return Conclusion(
        ratios,
        [
            at_least("evaluation against generate at its best", 5, bf16),
            at_most(
                "answers that differ from generate's, fp32", 0, ratios["answers that differ, fp32"]
            ),
        ],
    )


def _conclude_whole(groups: Groups) -> Conclusion:
    chosen = _fastest(groups)
    overhead = chosen["loop"].median("overhead")
    first, second, score = (
        chosen[name].median_seconds for name in ("first start", "second start", "score")
    )
    return Conclusion(
        {
            "overhead of the loop, share of a step": overhead,
            "second start / first start": second / first,
        },
        [
            at_most("overhead of the loop", 3, 100 * overhead, "%"),
            at_most("first start of training, to the end of the first step", 15, first, " s"),
            at_most("second start of training", 15, second, " s"),
            at_most("loraqa score on 10,570 questions", 1.5, score, " s"),
        ],
    )


def _fastest(groups: Groups) -> dict[str, Contender]:
    return {name: best(group) for name, group in groups.items()}


def _faster(one: Contender, other: Contender) -> float:
    """How many times as many questions a second."""
    return other.median_seconds / other.questions * one.questions / one.median_seconds


def _share(one: Contender, other: Contender, key: str) -> float:
    return one.median(key) / other.median(key)


def _differing(one: Contender, other: Contender) -> float:
    """How many answers differ; not a number where either failed."""
    if one.error or other.error:
        return math.nan
    ours, theirs = one.outcomes[0]["answers"], other.outcomes[0]["answers"]
    return len([question for question in theirs if ours[question] != theirs[question]])
