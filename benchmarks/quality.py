"""Test whether speed costs answer quality: `python -m benchmarks.quality [--contexts N]`.

Compares three trainings on the embedded world with the same base, adapter, questions, steps,
learning rates and seeds: trees in fp32; trees in bf16, if the processor multiplies bf16 matrices;
and PEFT with transformers' Trainer in fp32, whose steps mix questions of any contexts while a step
of trees takes whole contexts. Each trains for an epoch with five seeds. The result is F1 on
questions about names that occur in no training data, and the differences to PEFT's F1, paired by
seed. With the demo's 2,000 contexts this takes most of an hour on two cores, with 400 some ten
minutes. Writes benchmarks/results/quality-N.json.
"""

import argparse
import math
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import mean, stdev

import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from rich.console import Console
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    DataCollatorForSeq2Seq,
    Trainer,
    TrainingArguments,
)

from benchmarks.base import on_a_gpu
from benchmarks.harness import ROOT
from benchmarks.machine import fastest_precision, machine
from loraqa.answer.evaluate import evaluate
from loraqa.demo.parts import BASE
from loraqa.demo.world import test_passages, train_passages
from loraqa.files import write_json
from loraqa.finetuning import finetune
from loraqa.prompt.encode import PromptEncoder
from loraqa.prompt.plan import BatchPlan
from loraqa.prompt.segments import SegmentTokenizer
from loraqa.prompt.template import Template
from loraqa.reader import Reader
from loraqa.report.tables import Column, Table
from loraqa.squad import Passage, QADataset, write_official
from loraqa.train.settings import RunSettings, parse_settings

SEEDS = 5
TEST_CONTEXTS = 400
# Batches per optimizer step of the peer; steps of whole contexts have some 34 questions, not 32.
_PEER_BATCHES = 2
# Two-sided 95% quantile of Student's t-distribution with four degrees of freedom.
_T95 = 2.776

Train = Callable[[RunSettings, Sequence[Passage], Path], Path]
"""A function that trains in a folder and returns the path for `Reader.load`."""


def main() -> None:
    """Train all contenders with every seed and compare them."""
    parser = argparse.ArgumentParser("benchmarks.quality", description=__doc__)
    parser.add_argument("--contexts", type=int, default=2000, help="how many to train on")
    contexts = parser.parse_args().contexts
    test = QADataset.from_passages(test_passages(seed=2, count=TEST_CONTEXTS), "1.1")
    contenders = {
        name: (train, dtype)
        for name, (train, dtype) in CONTENDERS.items()
        if dtype in ("float32", fastest_precision())
    }
    scores: dict[str, list[float]] = {name: [] for name in contenders}
    for seed in range(SEEDS):
        for name, (train, dtype) in contenders.items():
            with tempfile.TemporaryDirectory() as folder:
                passages = train_passages(seed=seed, count=contexts)
                f1 = score(train, dtype, seed, Path(folder), passages, test)
            scores[name].append(f1)
            Console(stderr=True).print(f"seed {seed}, {name}: F1 {f1:.2f}")
    write_json(
        ROOT / "benchmarks" / "results" / f"quality-{contexts}.json",
        {
            "ratios": {
                f"F1, {name} / PEFT": mean(scores[name]) / mean(scores[PEFT]) for name in scores
            },
            "f1": scores,
            "machine": machine("python -m benchmarks.quality"),
        },
    )
    Console().print(differences_table(scores).to_rich())


def score(
    train: Train,
    dtype: str,
    seed: int,
    folder: Path,
    passages: Sequence[Passage],
    test: QADataset,
) -> float:
    """Train and return F1 on the test passages."""
    write_official(folder / "train.json", passages, "1.1")
    settings = parse_settings(
        {
            "model": {"source": str(BASE), "dtype": dtype},
            # The same questions as PEFT has.
            "data": {"train": str(folder / "train.json"), "negatives": 0.0, "held_out": 0},
            "lora": {"rank": 16, "alpha": 32.0},
            "optimisation": {"epochs": 1, "questions_per_step": 32, "learning_rate": 2e-3},
            "seed": seed,
        }
    )
    reader = Reader.load(train(settings, passages, folder), base=BASE, dtype="float32")
    return evaluate(reader, test).scores.f1


def train_ours(settings: RunSettings, _: Sequence[Passage], folder: Path) -> Path:
    """Train as `loraqa train` does."""
    return finetune(settings, folder / "run").run


def train_peft(settings: RunSettings, passages: Sequence[Passage], folder: Path) -> Path:
    """Train with PEFT and Trainer on padded batches of questions in random order.

    The number of steps equals that of trees, and so, nearly, does the number of questions in each.
    """
    options, lora = settings.optimisation, settings.lora
    tokenizer = AutoTokenizer.from_pretrained(BASE)
    encoder = PromptEncoder(
        SegmentTokenizer.from_transformers(tokenizer), Template(), 512, settings.prompt.stride
    )
    trees = encoder.encode_training(passages).trees
    plan = BatchPlan(trees, options.questions_per_step, options.tokens_per_batch, settings.seed)
    rows = [
        {
            "input_ids": [*tree.trunk.tolist(), *branch.prompt.tolist(), *branch.answer.tolist()],
            "labels": [-100] * (len(tree.trunk) + len(branch.prompt)) + branch.answer.tolist(),
        }
        for tree in trees
        for branch in tree.branches
    ]
    tokenizer.pad_token = tokenizer.eos_token
    torch.manual_seed(settings.seed)
    model = get_peft_model(
        AutoModelForCausalLM.from_pretrained(BASE, dtype=torch.float32),
        LoraConfig(
            r=lora.rank,
            lora_alpha=lora.alpha,
            target_modules="all-linear",
            fan_in_fan_out=True,
            task_type="CAUSAL_LM",
        ),
    )
    steps = plan.steps_in(0)
    Trainer(
        model,
        TrainingArguments(
            output_dir=str(folder / "peft"),
            max_steps=steps,
            per_device_train_batch_size=round(len(rows) / steps / _PEER_BATCHES),
            gradient_accumulation_steps=_PEER_BATCHES,
            learning_rate=options.learning_rate,
            lr_scheduler_type=options.schedule,
            warmup_steps=round(options.warmup * steps),
            adam_beta1=options.betas[0],
            adam_beta2=options.betas[1],
            weight_decay=options.weight_decay,
            max_grad_norm=options.clip_norm or 0,
            seed=settings.seed,
            use_cpu=not on_a_gpu(),
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            logging_strategy="no",
            dataloader_pin_memory=False,
        ),
        data_collator=DataCollatorForSeq2Seq(tokenizer, padding=True),
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
    ).train()
    model.save_pretrained(folder / "adapter")
    return folder / "adapter"


PEFT = "PEFT, padded, fp32"
CONTENDERS: dict[str, tuple[Train, str]] = {
    "trees, fp32": (train_ours, "float32"),
    "trees, bf16": (train_ours, "bfloat16"),
    PEFT: (train_peft, "float32"),
}


def differences_table(scores: dict[str, list[float]]) -> Table:
    """Return a table of mean F1 and difference to PEFT's, with Student's t 95% interval."""
    rows = []
    for name, values in scores.items():
        differences = [ours - peer for ours, peer in zip(values, scores[PEFT], strict=True)]
        middle, half = mean(differences), _T95 * stdev(differences) / math.sqrt(SEEDS)
        rows.append((name, mean(values), middle, middle - half, middle + half))
    columns = ("F1", "minus PEFT's", "95% from", "to")
    return Table(
        f"F1 over {SEEDS} seeds",
        (Column("trained by"), *(Column(name, ".2f") for name in columns)),
        tuple(rows),
    )


if __name__ == "__main__":
    main()
