"""Training with transformers' Trainer and TRL's SFTTrainer on PEFT; answering with `generate`.

They get the tokens that we get, and settings under which they compute the same gradient: labels
on the answer and its end alone, a loss weighed by tokens, no clipping. Logging is on, as with us.
"""

import math
import tempfile
import time
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from datasets import Dataset
from peft import PeftModel
from torch.nn.utils.rnn import pad_sequence
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    DataCollatorForSeq2Seq,
    Trainer,
    TrainingArguments,
)

from benchmarks.base import MAX_LENGTH, Task, device, on_a_gpu
from benchmarks.clock import measure, peak_mib
from loraqa.answer.decode import Rules
from loraqa.prompt.encode import PromptEncoder
from loraqa.prompt.segments import SegmentTokenizer
from loraqa.squad import Passage

# What the weights are and whether autocast is on; bf16 both ways, of which the faster counts.
PRECISIONS: dict[str, tuple[torch.dtype, bool]] = {
    "float32": (torch.float32, False),
    "autocast": (torch.float32, True),
    "bfloat16": (torch.bfloat16, False),
    "bfloat16 and autocast": (torch.bfloat16, True),
}


def trainer(task: dict[str, Any], kind: str, batch: int, sampling: str) -> dict[str, Any]:
    """PEFT and transformers' Trainer on batches padded to their longest row.

    Args:
        task: a `Task`.
        kind: a key of `PRECISIONS`.
        batch: rows in a batch.
        sampling: Trainer's `train_sampling_strategy`: "random" or "group_by_length".
    """
    the = Task(**task)
    rows = _rows(the)
    model = _adapted(the, kind)
    tokenizer = _tokenizer(the)
    with tempfile.TemporaryDirectory() as out:
        made = Trainer(
            model,
            TrainingArguments(**_arguments(the, kind, batch, len(rows), out, sampling)),
            data_collator=DataCollatorForSeq2Seq(tokenizer, padding=True),
            train_dataset=Dataset.from_list(rows),
            processing_class=tokenizer,
        )
        return _measured(the, made, rows)


def sft(task: dict[str, Any], kind: str, batch: int, layout: str) -> dict[str, Any]:
    """TRL's SFTTrainer by length, with the loss on the completion only.

    Args:
        task, kind, batch: as for `trainer`.
        layout: "padded"; "padding-free": the rows of a batch one after another in a single one;
            or "packed": rows as long as the model takes, filled with examples beforehand.
    """
    from trl import SFTConfig, SFTTrainer

    the = Task(**task)
    rows = _rows(the)
    packed = layout == "packed"
    data = _completions(rows)
    count = _packed_rows(data) if packed else len(rows)
    with tempfile.TemporaryDirectory() as out:
        made = SFTTrainer(
            _adapted(the, kind),
            SFTConfig(
                **_arguments(the, kind, batch, count, out, "group_by_length"),
                # On by default, to save memory; it computes every forward pass twice.
                gradient_checkpointing=False,
                completion_only_loss=True,
                packing=packed,
                padding_free=layout == "padding-free",
                max_length=MAX_LENGTH if packed else None,
            ),
            train_dataset=data,
            processing_class=_tokenizer(the),
        )
        return _measured(the, made, rows)


def generate(
    folder: str, adapter: str, data: str, precision: str, batch: int, answer_tokens: int
) -> dict[str, Any]:
    """Greedy answers by transformers' `generate` on merged weights.

    Prompts are padded on the left, longest first so that a batch's are of like length, and stop
    where ours do: at eos or at a token that holds a line break.
    """
    the = Task(folder, adapter, data, steps=0, precision=precision)
    model = _merged(the)
    encoder = the.encoder()
    stops = sorted(Rules(encoder.tokenizer, encoder.template, answer_tokens).stops)
    passages = the.passages()
    # Ours has computed some small trees by now.
    model.generate(
        torch.zeros(1, 8, dtype=torch.long, device=device()),
        max_new_tokens=2,
        pad_token_id=stops[0],
    )
    start = time.perf_counter()
    prompts = _prompts(encoder, passages, answer_tokens)
    answers: dict[str, str] = {}
    for chosen in _batches(prompts, batch):
        ids = [prompt for _, prompt in chosen]
        padded = pad_sequence(ids, batch_first=True, padding_side="left")
        ones = [torch.ones_like(prompt) for prompt in ids]
        written = model.generate(
            input_ids=padded.to(device()),
            attention_mask=pad_sequence(ones, batch_first=True, padding_side="left").to(device()),
            do_sample=False,
            max_new_tokens=answer_tokens,
            eos_token_id=stops,
            pad_token_id=encoder.tokenizer.eos,
        )
        for (question_id, _), row in zip(chosen, written[:, padded.shape[1] :], strict=True):
            answers[question_id] = _text(encoder.tokenizer, row.tolist(), stops)
    seconds = time.perf_counter() - start
    return {
        "seconds": [seconds],
        "questions": len(answers),
        "answers": answers,
        "peak_mib": peak_mib(),
    }


def _rows(the: Task) -> list[dict[str, list[int]]]:
    """One example per question; the loss looks at the answer and eos alone."""
    return [
        {
            "input_ids": [*tree.trunk.tolist(), *branch.prompt.tolist(), *branch.answer.tolist()],
            "labels": [
                *[-100] * (len(tree.trunk) + len(branch.prompt)),
                *branch.answer.tolist(),
            ],
        }
        for tree in the.trees()
        for branch in tree.branches
    ]


def _arguments(
    the: Task, kind: str, batch: int, rows: int, out: str, sampling: str
) -> dict[str, Any]:
    """An epoch is one optimizer step on all rows."""
    return {
        "output_dir": out,
        "max_steps": 1 + the.steps,
        "per_device_train_batch_size": batch,
        "gradient_accumulation_steps": math.ceil(rows / batch),
        "train_sampling_strategy": sampling,
        "bf16": PRECISIONS[kind][1],
        "use_cpu": not on_a_gpu(),
        "learning_rate": 1e-4,
        "max_grad_norm": 0,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "dataloader_pin_memory": on_a_gpu(),
    }


def _measured(the: Task, made: Trainer, rows: Sequence[dict[str, list[int]]]) -> dict[str, Any]:
    def train() -> float:
        made.train()
        return float(made.state.log_history[0]["loss"])

    result = measure(made.model, train, the.reference, the.precision)
    real = sum(len(row["input_ids"]) for row in rows)
    return {**result, "questions": len(rows), "tokens_without_padding": real}


def _completions(rows: Sequence[dict[str, list[int]]]) -> Dataset:
    """What SFTTrainer makes of prompts and completions."""
    return Dataset.from_list(
        [
            {
                "input_ids": row["input_ids"],
                "completion_mask": [int(label != -100) for label in row["labels"]],
            }
            for row in rows
        ]
    )


def _packed_rows(data: Dataset) -> int:
    """How many rows SFTTrainer will pack the examples into."""
    from trl.data_utils import pack_dataset

    return len(pack_dataset(data, MAX_LENGTH, strategy="bfd"))


def _adapted(the: Task, kind: str) -> PeftModel:
    base = AutoModelForCausalLM.from_pretrained(the.model_path, dtype=PRECISIONS[kind][0])
    return PeftModel.from_pretrained(base, the.adapter_path, is_trainable=True)


def _merged(the: Task) -> Any:
    base = AutoModelForCausalLM.from_pretrained(the.model_path, dtype=torch.float32)
    merged = PeftModel.from_pretrained(base, the.adapter_path).merge_and_unload()
    return merged.to(device(), getattr(torch, the.precision)).eval()


def _tokenizer(the: Task) -> Any:
    """GPT-2 has no padding token; attention masks, not ids, say what is padding."""
    tokenizer = AutoTokenizer.from_pretrained(the.model_path)
    tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def _prompts(
    encoder: PromptEncoder, passages: Sequence[Passage], answer_tokens: int
) -> list[tuple[str, torch.Tensor]]:
    """Question id and token ids of every prompt, longest first."""
    trees = encoder.encode_prompts(passages, answer_tokens).trees
    prompts = [
        (branch.question_id, torch.tensor([*tree.trunk.tolist(), *branch.prompt.tolist()]))
        for tree in trees
        for branch in tree.branches
    ]
    return sorted(prompts, key=lambda prompt: len(prompt[1]), reverse=True)


def _batches(items: Sequence[Any], size: int) -> Iterator[Sequence[Any]]:
    return (items[start : start + size] for start in range(0, len(items), size))


def _text(tokenizer: SegmentTokenizer, row: Sequence[int], stops: Sequence[int]) -> str:
    """The text up to where the answer stops."""
    end = next((place for place, token in enumerate(row) if token in stops), len(row))
    return tokenizer.decode(row[:end])
