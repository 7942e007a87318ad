"""The suites: their contenders, rounds and targets."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial

from benchmarks.base import MAX_ANSWER_TOKENS, Task
from benchmarks.harness import (
    Conclusion,
    Contender,
    Groups,
    Side,
    Suite,
    Target,
    at_least,
    at_most,
    best,
)

P1, P2, P3 = "P1: Trainer, fp32", "P2: Trainer, bf16", "P3: Trainer, by length"
P4, P5 = "P4: SFTTrainer", "P5: our padded path"
P4_PADDING_FREE, P4_PACKED = "P4, padding-free", "P4, packed"
OURS = {"float32": "ours, fp32", "bfloat16": "ours, bf16"}
MACHINE = "the machine"
PLAIN, FIRST_EPOCH, LATER_EPOCHS = "plain", "activated, first epoch", "activated, later epochs"
GENERATE = {"float32": "generate, fp32", "bfloat16": "generate, bf16"}

_PEER_ROWS = 8
# Questions in SQuAD v1.1's train and dev splits.
_LEARNED = 87_599
_SCORED = 10_570
_CHECKPOINT_EVERY = 200
# Timed steps of a plain and an activated LoRA, whose times may differ by a third only.
_ACTIVATED_STEPS = 4
# Timed steps with int8 and full weights, whose times may differ by less than a tenth.
_INT8_STEPS = 4
# About the length of a trained model's answers.
_TRAINED_ANSWER_TOKENS = 6


@dataclass(frozen=True)
class Scale:
    """How much is measured.

    Attributes:
        questions: questions per optimizer step.
        rounds: number of rounds.
        steps: timed optimizer steps per run, after one warm-up step.
        adapters: the adapters to train.
        kinds: kinds of bf16 that P2 tries, see `peers.PRECISIONS`.
        faster_kinds: kinds of bf16 that P3 and P4 try.
        batches: rows per batch that P3 and P4 try.
        layouts: P4's layouts besides padded rows.
        answered: number of dev questions to answer.
        answer_batches: rows per batch that `generate` tries.
        answer_tokens: lengths of answers, one suite for each.
        loop_steps: optimizer steps over which the loop's overhead is measured.
        learned: number of questions in the training whose start is timed.
        starts: number of timed starts, both without and with the encoded data in the cache.
    """

    questions: int
    rounds: int
    steps: int
    adapters: Sequence[str]
    kinds: Sequence[str]
    faster_kinds: Sequence[str]
    batches: Sequence[int]
    layouts: Mapping[str, str]
    answered: int
    answer_batches: Sequence[int]
    answer_tokens: Sequence[int]
    loop_steps: int
    learned: int
    starts: int


QUICK = Scale(
    questions=6,
    rounds=1,
    steps=1,
    adapters=["all-linear"],
    kinds=["bfloat16 and autocast"],
    faster_kinds=["bfloat16 and autocast"],
    batches=[4],
    # Padded rows were always faster.
    layouts={},
    answered=24,
    answer_batches=[8],
    answer_tokens=[_TRAINED_ANSWER_TOKENS],
    loop_steps=3,
    learned=4_000,
    starts=1,
)
FULL = Scale(
    questions=32,
    rounds=2,
    steps=1,
    adapters=["all-linear", "c_attn"],
    kinds=["autocast", "bfloat16", "bfloat16 and autocast"],
    faster_kinds=["bfloat16 and autocast", "bfloat16"],
    batches=[8, 4, 2],
    layouts={P4_PADDING_FREE: "padding-free", P4_PACKED: "packed"},
    answered=128,
    answer_batches=[16, 8, 32],
    answer_tokens=[MAX_ANSWER_TOKENS, _TRAINED_ANSWER_TOKENS],
    loop_steps=10,
    learned=_LEARNED,
    starts=3,
)


# A step takes milliseconds, far less than starting a process, so each run times many steps.
GPU = replace(
    FULL,
    rounds=1,
    steps=20,
    kinds=["autocast", "bfloat16"],
    faster_kinds=["bfloat16"],
    batches=[32, 16],
    answered=2_000,
    answer_batches=[256, 128],
    loop_steps=40,
)


@dataclass(frozen=True)
class Goals:
    """Targets of training; those without a default are for machines that compute in bf16.

    Attributes:
        p1, p2, by_length: how many times as fast as P1, P2 and the best of P3 and P4.
        fp32: how many times as fast as P1, both in fp32.
        by_length_in_fp32: how many times as fast as the best of P3 and P4, on machines that compute
            in fp32.
        share: percent of the machine's rate of products, by precision.
    """

    p1: float
    p2: float
    by_length: float
    fp32: float
    by_length_in_fp32: float
    share: Mapping[str, float]


OF_GPT2 = Goals(15, 10, 6, fp32=9, by_length_in_fp32=4.5, share={"bfloat16": 65, "float32": 65})
OF_LLAMA = Goals(15, 10, 6, fp32=8, by_length_in_fp32=4.5, share={"bfloat16": 60, "float32": 80})


def training_gpt2(folder: str, adapter: str, scale: Scale, precision: str) -> Suite:
    """GPT-2's shape with one of its adapters."""
    return training(f"training-{adapter}", folder, folder, adapter, scale, precision, OF_GPT2)


def training_llama(folder: str, texts: str, scale: Scale, precision: str) -> Suite:
    """The shape of SmolLM2-135M: grouped-query attention, RMSNorm, SwiGLU, rotary embedding."""
    return training("training-llama", folder, texts, "all-linear", scale, precision, OF_LLAMA)


def training(
    name: str,
    folder: str,
    texts: str,
    adapter: str,
    scale: Scale,
    precision: str,
    goals: Goals,
) -> Suite:
    """Optimizer steps on the same questions by all contenders, and the machine's matrix rate.

    P1 computes in fp32, the other peers in `precision`, the machine's fastest, and loraqa in both.

    Args:
        name: name of the suite.
        folder: folder of the model and its adapters.
        texts: folder of the passages.
        adapter: the adapter to train.
        scale: how much is measured.
        precision: the machine's fastest dtype.
        goals: what is to be reached.
    """
    reference = f"{folder}/{name}.safetensors"
    fp32 = Task(folder, adapter, f"{texts}/train.json", scale.steps, "float32", reference)
    fast = replace(fp32, precision=precision)
    bf16 = {P2: trainer(fast, scale.kinds, [_PEER_ROWS], "random")}
    kinds = _kinds(scale, precision)
    return Suite(
        name,
        {"train.json": ("sample", {"split": "train", "questions": scale.questions})},
        {
            P1: trainer(fp32, ["float32"], [_PEER_ROWS], "random"),
            **(bf16 if precision == "bfloat16" else {}),
            P3: trainer(fast, kinds, scale.batches, "group_by_length"),
            P4: _sft(fast, kinds, "padded", scale.batches),
            **{side: _sft(fast, kinds, how, scale.batches) for side, how in scale.layouts.items()},
            P5: Side("ours.padded", "rows by length", {"task": asdict(fast)}),
            OURS["float32"]: trees(fp32),
            OURS[precision]: trees(fast),
            MACHINE: Side("machine.matrix_rate", "matrix products", {"task": asdict(fast)}),
        },
        scale.rounds,
        partial(_conclude_training, precision=precision, goals=goals),
    )


def single(folder: str, scale: Scale, precision: str) -> Suite:
    """Optimizer steps with one question per context, so that questions share nothing."""
    name = "training-one-question"
    reference = f"{folder}/{name}.safetensors"
    task = Task(folder, "all-linear", "single.json", scale.steps, precision, reference)
    kinds = _kinds(scale, precision)
    return Suite(
        name,
        {"single.json": ("single", {"questions": scale.questions})},
        {
            P3: trainer(task, kinds, scale.batches, "group_by_length"),
            OURS[precision]: trees(task),
        },
        scale.rounds,
        partial(_conclude_single, precision=precision),
    )


def activated(name: str, folder: str, texts: str, scale: Scale, precision: str) -> Suite:
    """Optimizer steps of a plain LoRA, and of an activated one in its first and later epochs."""
    data, steps = f"{texts}/train.json", _ACTIVATED_STEPS
    plain = Task(folder, "all-linear", data, steps, precision)
    task = asdict(replace(plain, reference=f"{folder}/{name}.safetensors"))
    return Suite(
        name,
        {"train.json": ("sample", {"split": "train", "questions": scale.questions})},
        {
            PLAIN: trees(plain),
            FIRST_EPOCH: Side("ours.activated", "all trunks", {"task": task, "kept": False}),
            LATER_EPOCHS: Side("ours.activated", "kept trunks", {"task": task, "kept": True}),
        },
        scale.rounds,
        _conclude_activated,
    )


def int8(name: str, folder: str, texts: str, scale: Scale, precision: str) -> Suite:
    """Optimizer steps over frozen weights in full and in int8, in fp32 and in `precision`."""
    plain = Task(folder, "all-linear", f"{texts}/train.json", _INT8_STEPS, "float32")
    dtypes = list(dict.fromkeys(["float32", precision]))
    tasks = {
        side: replace(plain, precision=dtype, quantisation=quantisation)
        for dtype in dtypes
        for side, quantisation in ((OURS[dtype], "none"), (_over_int8(dtype), "int8"))
    }
    return Suite(
        name,
        {"train.json": ("sample", {"split": "train", "questions": scale.questions})},
        {side: trees(task) for side, task in tasks.items()},
        scale.rounds,
        partial(_conclude_int8, dtypes=dtypes),
    )


def _over_int8(dtype: str) -> str:
    return f"{OURS[dtype]} over int8"


def evaluation_gpt2(folder: str, answer_tokens: int, scale: Scale, precision: str) -> Suite:
    """Answers of GPT-2's shape."""
    name = f"evaluation-{answer_tokens}-tokens"
    return evaluation(name, folder, folder, answer_tokens, scale, precision)


def evaluation_llama(folder: str, texts: str, scale: Scale, precision: str) -> Suite:
    """Answers of the shape of SmolLM2-135M."""
    return evaluation("evaluation-llama", folder, texts, _TRAINED_ANSWER_TOKENS, scale, precision)


def evaluation(
    name: str, folder: str, texts: str, answer_tokens: int, scale: Scale, precision: str
) -> Suite:
    """Greedy answers to dev questions; with random weights every answer has the maximal length."""

    def options(dtype: str) -> dict[str, str | int]:
        return reading(folder, f"{texts}/dev.json", dtype, answer_tokens)

    batches = {"batch": scale.answer_batches}
    dtypes = list(dict.fromkeys(["float32", precision]))
    return Suite(
        name,
        {"dev.json": ("sample", {"split": "dev", "questions": scale.answered})},
        {
            GENERATE[dtype]: Side("peers.generate", "batches of {batch}", options(dtype), batches)
            for dtype in dtypes
        }
        | {OURS[dtype]: Side("ours.read", "Reader", options(dtype)) for dtype in dtypes},
        scale.rounds,
        partial(_conclude_evaluation, dtypes=dtypes),
    )


def whole(folder: str, scale: Scale, precision: str) -> Suite:
    """The overhead of the training loop, and the time of whole commands."""
    task = Task(folder, "all-linear", "loop.json", scale.loop_steps, precision)
    caches = [f"{folder}/cache-{number}" for number in range(scale.starts)]
    # All second starts use the cache that the very first start filled.
    first_start, second_start = (
        Side(
            "commands.start",
            "loraqa train, to the first step",
            {"folder": folder, "train": f"{folder}/whole.json", "caches": used},
        )
        for used in (caches, caches[:1] * len(caches))
    )
    return Suite(
        "whole",
        {
            "loop.json": ("sample", {"split": "train", "questions": scale.questions}),
            "whole.json": ("repeated", {"split": "train", "questions": scale.learned}),
            "scored.json": ("repeated", {"split": "dev", "questions": _SCORED}),
        },
        {
            "loop": Side(
                "ours.overhead",
                "the loop of loraqa train",
                {"task": asdict(task), "checkpoint_every": _CHECKPOINT_EVERY},
            ),
            "first start": first_start,
            "second start": second_start,
            "score": Side(
                "commands.score", "loraqa score", {"folder": folder, "data": "scored.json"}
            ),
        },
        1,
        partial(_conclude_whole, learned=scale.learned),
    )


def epoch(folder: str, precision: str) -> Suite:
    """All of SQuAD v1.1 on a GPU: an epoch on its train split, and answers to its dev split."""
    read = reading(folder, "asked-all.json", precision, _TRAINED_ANSWER_TOKENS)
    return Suite(
        "epoch",
        {
            "learned.json": ("repeated", {"split": "train", "questions": _LEARNED}),
            "asked-all.json": ("repeated", {"split": "dev", "questions": _SCORED}),
        },
        {
            "training": Side(
                "ours.epoch", "loraqa train", {"folder": folder, "train": "learned.json"}
            ),
            "answering": Side("ours.read", "Reader", read),
        },
        1,
        _conclude_epoch,
    )


def reading(folder: str, data: str, precision: str, answer_tokens: int) -> dict[str, str | int]:
    """Return the options of a side that answers the questions of a file."""
    return {
        "folder": folder,
        "adapter": "all-linear",
        "data": data,
        "precision": precision,
        "answer_tokens": answer_tokens,
    }


def trainer(task: Task, kinds: Sequence[str], batches: Sequence[int], sampling: str) -> Side:
    """Return the side that trains with PEFT and transformers' Trainer."""
    return Side(
        "peers.trainer",
        "{kind}, batches of {batch}",
        {"task": asdict(task), "sampling": sampling},
        {"kind": kinds, "batch": batches},
    )


def trees(task: Task, tokens_per_batch: int | None = None) -> Side:
    """Return the side that trains with loraqa."""
    return Side("ours.trees", "trees", {"task": asdict(task), "tokens_per_batch": tokens_per_batch})


def _kinds(scale: Scale, precision: str) -> Sequence[str]:
    """Return the kinds of precision that P3 and P4 try."""
    return scale.faster_kinds if precision == "bfloat16" else [precision]


def _sft(task: Task, kinds: Sequence[str], layout: str, batches: Sequence[int]) -> Side:
    # One packed row is as long as a batch should be.
    sizes = [1] if layout == "packed" else batches
    return Side(
        "peers.sft",
        "{kind}, batches of {batch}",
        {"task": asdict(task), "layout": layout},
        {"kind": kinds, "batch": sizes},
    )


def _conclude_training(groups: Groups, precision: str, goals: Goals) -> Conclusion:
    chosen = _fastest(groups)
    name = OURS[precision]
    ours, fp32 = chosen[name], OURS["float32"]
    faster = {
        **{f"{name} / {peer}": _faster(ours, chosen[peer]) for peer in (P1, P2) if peer in chosen},
        f"{name} / best of P3, P4": _faster(ours, best(_by_length(chosen))),
        f"{name} / P5": _faster(ours, chosen[P5]),
        f"{fp32} / {P1}": _faster(chosen[fp32], chosen[P1]),
    }
    memory, growth = (_share(ours, chosen[P1], key) for key in ("peak_mib", "growth_mib"))
    rates = _rates(chosen, precision)
    share = 100 * rates[f"share of the machine's rate, {name}"]
    return Conclusion(
        {
            **faster,
            f"peak memory, {name} / P1": memory,
            f"growth of memory in a step, {name} / P1": growth,
            **rates,
        },
        [
            *_against_peers(faster, precision, goals),
            at_least("ours fp32 against P1", goals.fp32, faster[f"{fp32} / {P1}"]),
            at_least(
                f"share of the machine's matrix rate, {name}", goals.share[precision], share, "%"
            ),
            at_most("peak memory of a step, over that before it, against P1", 0.5, growth),
            at_most("peak memory of the process against P1", 0.5, memory),
        ],
    )


def _conclude_activated(groups: Groups) -> Conclusion:
    chosen = _fastest(groups)
    first, later = (_faster(chosen[s], chosen[PLAIN]) for s in (FIRST_EPOCH, LATER_EPOCHS))
    return Conclusion(
        {f"{FIRST_EPOCH} / {PLAIN}": first, f"{LATER_EPOCHS} / {PLAIN}": later},
        [at_least(FIRST_EPOCH, 1.35, first), at_least(LATER_EPOCHS, 2.2, later)],
    )


def _conclude_int8(groups: Groups, dtypes: Sequence[str]) -> Conclusion:
    chosen = _fastest(groups)
    ratios = {}
    for dtype in dtypes:
        full, of_int8 = chosen[OURS[dtype]], chosen[_over_int8(dtype)]
        ratios[f"speed, {_over_int8(dtype)} / {OURS[dtype]}"] = _faster(of_int8, full)
        for key in ("weights_mib", "peak_mib"):
            ratios[f"{key}, {_over_int8(dtype)} / {OURS[dtype]}"] = _share(of_int8, full, key)
    return Conclusion(ratios)


def _against_peers(faster: Mapping[str, float], precision: str, goals: Goals) -> list[Target]:
    """Return the targets for ratios to peers, which depend on the machine's fastest precision."""
    name, others = OURS[precision], "against the best of P3 and P4"
    by_length = faster[f"{name} / best of P3, P4"]
    if precision == "float32":
        return [at_least(f"{others}, in fp32", goals.by_length_in_fp32, by_length)]
    return [
        at_least("training, ours bf16 against P1", goals.p1, faster[f"{name} / {P1}"]),
        at_least("against P2", goals.p2, faster[f"{name} / {P2}"]),
        at_least(others, goals.by_length, by_length),
    ]


def _by_length(chosen: Mapping[str, Contender]) -> list[Contender]:
    names = (P3, P4, P4_PADDING_FREE, P4_PACKED)
    return [chosen[name] for name in names if name in chosen]


def _rates(chosen: Mapping[str, Contender], precision: str) -> dict[str, float]:
    """Return the machine's matrix rates, and the share of them that each side's needed FLOPs reach.

    Peers need the FLOPs of separate examples. FLOPs beyond need, such as padding, do not count.
    """
    ours = chosen[OURS[precision]]
    sides = {
        P1: ("float32", "flops_separate"),
        **dict.fromkeys(
            (P2, P3, P4, P4_PADDING_FREE, P4_PACKED, P5), (precision, "flops_separate")
        ),
        OURS["float32"]: ("float32", "flops"),
        OURS[precision]: (precision, "flops"),
    }
    shares = {
        f"GFLOP/s of the machine, {dtype}": chosen[MACHINE].median(f"{dtype}_gflops")
        for dtype in dict.fromkeys(["float32", precision])
    }
    for name, (dtype, flops) in sides.items():
        if name not in chosen:
            continue
        side = chosen[name]
        a_second = ours.median(flops) / ours.questions * side.questions / side.median_seconds
        machine = chosen[MACHINE].median(f"{dtype}_gflops") * 1e9
        shares[f"share of the machine's rate, {name}"] = a_second / machine
    return shares


def _conclude_single(groups: Groups, precision: str) -> Conclusion:
    chosen = _fastest(groups)
    name = OURS[precision]
    ratio = _faster(chosen[name], chosen[P3])
    return Conclusion(
        {f"one question per context, {name} / P3": ratio},
        [at_least(f"one question per context: {name} against P3", 2, ratio)],
    )


def _conclude_evaluation(groups: Groups, dtypes: Sequence[str]) -> Conclusion:
    chosen = _fastest(groups)
    theirs = best([chosen[GENERATE[dtype]] for dtype in dtypes])
    ratios = {}
    for dtype in dtypes:
        ours = chosen[OURS[dtype]]
        ratios[f"answering, {OURS[dtype]} / generate at its best"] = _faster(ours, theirs)
        ratios[f"answers that differ, {OURS[dtype]}"] = _differing(ours, chosen[GENERATE[dtype]])
    fastest = OURS[dtypes[-1]]
    return Conclusion(
        ratios,
        [
            at_least(
                f"evaluation, {fastest}, against generate at its best",
                5,
                ratios[f"answering, {fastest} / generate at its best"],
            ),
            at_most(
                "answers that differ from generate's, fp32",
                0,
                ratios["answers that differ, ours, fp32"],
            ),
        ],
    )


def _conclude_whole(groups: Groups, learned: int) -> Conclusion:
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
            at_most(f"first start on {learned:,} questions, to the end of step 1", 15, first, " s"),
            at_most(f"second start on {learned:,} questions", 15, second, " s"),
            at_most("loraqa score on 10,570 questions", 1.5, score, " s"),
        ],
    )


def _conclude_epoch(groups: Groups) -> Conclusion:
    seconds = {name: contender.median_seconds for name, contender in _fastest(groups).items()}
    return Conclusion(
        {f"seconds of {name}": took for name, took in seconds.items()},
        [
            at_most(f"an epoch of {_LEARNED:,} questions, one H200", 15, seconds["training"], " s"),
            at_most(f"answers to {_SCORED:,} questions, one H200", 2, seconds["answering"], " s"),
        ],
    )


def _fastest(groups: Groups) -> dict[str, Contender]:
    return {name: best(group) for name, group in groups.items()}


def _faster(one: Contender, other: Contender) -> float:
    """Return the ratio of questions per second, one to other."""
    return other.median_seconds / other.questions * one.questions / one.median_seconds


def _share(one: Contender, other: Contender, key: str) -> float:
    return one.median(key) / other.median(key)


def _differing(one: Contender, other: Contender) -> float:
    """Return the number of answers that differ; NaN if either side failed."""
    if one.error or other.error:
        return math.nan
    ours, theirs = one.outcomes[0]["answers"], other.outcomes[0]["answers"]
    return len([question for question in theirs if ours[question] != theirs[question]])
