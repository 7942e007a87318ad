"""Training speed of trees against PEFT on padded batches, side by side.

Both take the same optimizer steps on the same questions with the same LoRA, on GPT-2's 124M shape
with random weights. Repetitions alternate, so that whatever else the machine does slows down both.

    python benchmarks/tree_against_padded.py

takes some minutes and writes benchmarks/results/tree_against_padded.json.
"""

import json
import math
import random
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from torch.optim import AdamW
from transformers import AutoModelForCausalLM, AutoTokenizer, GPT2Config

from loraqa.demo.run import BASE
from loraqa.demo.world import train_passages
from loraqa.files import write_json
from loraqa.lora.adapt import adapt
from loraqa.lora.settings import LoraSettings
from loraqa.model.load import choose_dtype, load_base
from loraqa.model.runner import TreeRunner
from loraqa.prompt.encode import PromptEncoder
from loraqa.prompt.plan import pack
from loraqa.prompt.segments import SegmentTokenizer
from loraqa.prompt.template import DEFAULT_TEMPLATE, Template
from loraqa.prompt.tree import Tree
from loraqa.squad import Passage, read_passages
from loraqa.train.loss import accumulate
from loraqa.train.run import environment

QUESTIONS = 32
REPETITIONS = 3
PADDED_ROWS = 8
LEARNING_RATE = 1e-4
# The base's rounding decides how near two ways to compute the same loss come.
TOLERANCE = {"float32": 1e-5, "bfloat16": 1e-2}

ROOT = Path(__file__).resolve().parents[1]
# Real text, where it lies beside the checkout.
SHARED = ROOT.parent / "shared"
RESULT = ROOT / "benchmarks" / "results" / "tree_against_padded.json"

OptimizerStep = Callable[[], float]
"""Does one optimizer step on all the questions; gives the loss before it."""


def main() -> None:
    with TemporaryDirectory() as name:
        folder = Path(name)
        source, passages, tokenizer = text()
        tokenizer.save_pretrained(folder)
        GPT2Config().save_pretrained(folder)
        encoder = PromptEncoder(
            SegmentTokenizer(tokenizer), Template(DEFAULT_TEMPLATE), max_length=1024, stride=128
        )
        trees = encoder.encode_training(passages).trees
        measured = {dtype: measure(folder, dtype, trees) for dtype in dtypes()}
    machine = environment(torch.device("cpu"), torch.float32, "benchmarks/tree_against_padded.py")
    del machine["dtype"]
    result = {
        "ratios": {f"trees over padded PEFT, {d}": m["ratio"] for d, m in measured.items()},
        "questions_per_second": {d: m["questions_per_second"] for d, m in measured.items()},
        "text": source,
        "questions": sum(len(tree.branches) for tree in trees),
        "tokens_as_trees": sum(map(len, trees)),
        "tokens_separate": sum(tree.separate_length for tree in trees),
        "repetitions": REPETITIONS,
        "machine": machine,
    }
    write_json(RESULT, result)
    print(json.dumps(result, indent=2))


def text() -> tuple[str, list[Passage], Any]:
    """Where the text is from, some passages of it, drawn with a fixed seed, and a tokenizer."""
    if SHARED.is_dir():
        source, folder = "SQuAD v1.1", SHARED / "gpt2"
        passages = list(read_passages(SHARED / "data" / "squad1-train.json").passages)
    else:
        source, folder = "the demo's world", BASE
        passages = train_passages(seed=0, count=QUESTIONS)
    random.Random(0).shuffle(passages)
    chosen: list[Passage] = []
    while sum(len(passage.questions) for passage in chosen) < QUESTIONS:
        chosen.append(passages.pop())
    return source, chosen, AutoTokenizer.from_pretrained(folder)


def dtypes() -> list[str]:
    """fp32, and bf16 where the processor computes in it."""
    fast = str(choose_dtype("auto", torch.device("cpu"))).removeprefix("torch.")
    return list(dict.fromkeys(["float32", fast]))


def measure(folder: Path, dtype: str, trees: Sequence[Tree]) -> dict[str, Any]:
    """Questions a second of both, the medians of alternating repetitions, and their ratio."""
    contenders = {
        "trees": tree_step(folder, dtype, trees),
        "padded": padded_step(folder, dtype, trees),
    }
    # The first step warms up and, as every B is still 0, must find the same loss.
    losses = [step() for step in contenders.values()]
    if not math.isclose(*losses, rel_tol=TOLERANCE[dtype]):
        raise SystemExit(f"The contenders do not compute the same thing: losses {losses}.")
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(REPETITIONS):
        for name, step in contenders.items():
            start = time.perf_counter()
            step()
            seconds[name].append(time.perf_counter() - start)
    questions = sum(len(tree.branches) for tree in trees)
    speeds = {name: questions / median(times) for name, times in seconds.items()}
    return {"questions_per_second": speeds, "ratio": speeds["trees"] / speeds["padded"]}


def tree_step(folder: Path, dtype: str, trees: Sequence[Tree]) -> OptimizerStep:
    """As `loraqa train` does it."""
    model, _ = load_base(folder, dtype=dtype, device="cpu", random_weights=True)
    adapt(model, LoraSettings())
    runner = TreeRunner(model)
    optimizer = adamw(model)

    def step() -> float:
        loss = accumulate(runner, pack(trees, tokens=4096))
        optimizer.step()
        optimizer.zero_grad()
        return loss.item()

    return step


def padded_step(folder: Path, dtype: str, trees: Sequence[Tree]) -> OptimizerStep:
    """As a script with transformers and PEFT does it: rows padded to the longest of each batch."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(
        GPT2Config.from_pretrained(folder, embd_pdrop=0, attn_pdrop=0, resid_pdrop=0),
        dtype=getattr(torch, dtype),
    )
    lora = LoraSettings()
    config = LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,
        target_modules="all-linear",
        fan_in_fan_out=True,
        task_type="CAUSAL_LM",
    )
    adapted = get_peft_model(model, config)
    optimizer = adamw(adapted)
    rows = [row(tree, index) for tree in trees for index in range(len(tree.branches))]
    batches = [padded(rows[i : i + PADDED_ROWS]) for i in range(0, len(rows), PADDED_ROWS)]
    supervised = sum(int((batch["labels"] != -100).sum()) for batch in batches)

    def step() -> float:
        total = 0.0
        for batch in batches:
            loss = adapted(**batch, num_items_in_batch=supervised).loss
            loss.backward()
            total += loss.item()
        optimizer.step()
        optimizer.zero_grad()
        return total

    return step


def row(tree: Tree, index: int) -> tuple[Tensor, Tensor]:
    """Ids and labels of one question with a context of its own."""
    branch = tree.branches[index]
    prompt = torch.tensor([*tree.trunk, *branch.prompt])
    answer = torch.tensor(branch.answer).long()
    return torch.cat([prompt, answer]), torch.cat([torch.full_like(prompt, -100), answer])


def padded(rows: Sequence[tuple[Tensor, Tensor]]) -> dict[str, Tensor]:
    """Rows padded on the right to the longest."""
    ids, labels = zip(*rows, strict=True)
    return {
        "input_ids": pad_sequence(ids, batch_first=True),
        "attention_mask": pad_sequence([torch.ones_like(i) for i in ids], batch_first=True),
        "labels": pad_sequence(labels, batch_first=True, padding_value=-100),
    }


def adamw(model: torch.nn.Module) -> AdamW:
    """The optimizer of both."""
    return AdamW([p for p in model.parameters() if p.requires_grad], lr=LEARNING_RATE)


if __name__ == "__main__":
    main()
