"""The peers: transformers' Trainer and TRL's SFTTrainer with PEFT; transformers' `generate`.

They get loraqa's tokens, and settings that give the same gradient: labels only on the answer and
its end token, a loss averaged over tokens, no clipping. Logging is on, as in loraqa.
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

# Dtype of the weights, and whether to use autocast; of the kinds of bf16 the fastest counts.
PRECISIONS: dict[str, tuple[torch.dtype, bool]] = {
    "float32": (torch.float32, False),
    "autocast": (torch.float32, True),
    "bfloat16": (torch.bfloat16, False),
    "bfloat16 and autocast": (torch.bfloat16, True),
}


def trainer(task: dict[str, Any], kind: str, batch: int, sampling: str) -> dict[str, Any]:
    """Train with PEFT and transformers' Trainer on batches padded to their longest row.

    Args:
        task: a `Task`.
        kind: a key of `PRECISIONS`.
        batch: rows per batch.
        sampling: Trainer's `train_sampling_strategy`: "random" or "group_by_length".
    """
    spec = Task(**task)
    rows = _rows(spec)
    model = _adapted(spec, kind)
    tokenizer = _tokenizer(spec)
    with tempfile.TemporaryDirectory() as out:
        made = Trainer(
            model,
            TrainingArguments(**_arguments(spec, kind, batch, len(rows), out, sampling)),
            data_collator=DataCollatorForSeq2Seq(tokenizer, padding=True),
            train_dataset=Dataset.from_list(rows),
            processing_class=tokenizer,
        )
        return _measured(spec, made, rows)


def sft(task: dict[str, Any], kind: str, batch: int, layout: str) -> dict[str, Any]:
    """Train with TRL's SFTTrainer on rows grouped by length, with completion-only loss.

    Args:
        task, kind, batch: as for `trainer`.
        layout: "padded"; "padding-free": the rows of a batch are concatenated to one; or "packed":
            examples are packed beforehand into rows of the model's maximal length.
    """
    from trl import SFTConfig, SFTTrainer

    spec = Task(**task)
    rows = _rows(spec)
    packed = layout == "packed"
    data = _completions(rows)
    count = _packed_rows(data) if packed else len(rows)
    with tempfile.TemporaryDirectory() as out:
        made = SFTTrainer(
            _adapted(spec, kind),
            SFTConfig(
                **_arguments(spec, kind, batch, count, out, "group_by_length"),
                # On by default to save memory, but it computes every forward pass twice.
                gradient_checkpointing=False,
                completion_only_loss=True,
                packing=packed,
                padding_free=layout == "padding-free",
                max_length=MAX_LENGTH if packed else None,
            ),
            train_dataset=data,
            processing_class=_tokenizer(spec),
        )
        return _measured(spec, made, rows)


def generate(
    folder: str, adapter: str, data: str, precision: str, batch: int, answer_tokens: int
) -> dict[str, Any]:
    """Time greedy answers by transformers' `generate` on merged weights.

    Prompts are padded on the left and sorted by length, longest first, to save padding. Answers
    stop as loraqa's do: at eos or at a token with a line break.
    """
    spec = Task(folder, adapter, data, steps=0, precision=precision)
    model = _merged(spec)
    encoder = spec.encoder()
    stops = sorted(Rules(encoder.tokenizer, encoder.template, answer_tokens).stops)
    passages = spec.passages()
    # A warm-up, because loraqa has computed some small trees when its clock starts.
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


def _rows(spec: Task) -> list[dict[str, list[int]]]:
    """Return one example per question, with labels only on the answer and eos."""
    return [
        {
            "input_ids": [*tree.trunk.tolist(), *branch.prompt.tolist(), *branch.answer.tolist()],
            "labels": [
                *[-100] * (len(tree.trunk) + len(branch.prompt)),
                *branch.answer.tolist(),
            ],
        }
        for tree in spec.trees()
        for branch in tree.branches
    ]


def _arguments(
    spec: Task, kind: str, batch: int, rows: int, out: str, sampling: str
) -> dict[str, Any]:
    """Return the arguments of Trainer; each epoch is one optimizer step on all rows."""
    return {
        "output_dir": out,
        "max_steps": 1 + spec.steps,
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


def _measured(spec: Task, made: Trainer, rows: Sequence[dict[str, list[int]]]) -> dict[str, Any]:
    def train() -> float:
        made.train()
        return float(made.state.log_history[0]["loss"])

    result = measure(made.model, train, spec.reference, spec.precision)
    real = sum(len(row["input_ids"]) for row in rows)
    return {**result, "questions": len(rows), "tokens_without_padding": real}


def _completions(rows: Sequence[dict[str, list[int]]]) -> Dataset:
    """Return the rows in the form to which SFTTrainer converts prompts and completions."""
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
    """Return the number of rows into which SFTTrainer packs the examples."""
    from trl.data_utils import pack_dataset

    return len(pack_dataset(data, MAX_LENGTH, strategy="bfd"))


def _adapted(spec: Task, kind: str) -> PeftModel:
    base = AutoModelForCausalLM.from_pretrained(spec.model_path, dtype=PRECISIONS[kind][0])
    return PeftModel.from_pretrained(base, spec.adapter_path, is_trainable=True)


def _merged(spec: Task) -> Any:
    base = AutoModelForCausalLM.from_pretrained(spec.model_path, dtype=torch.float32)
    merged = PeftModel.from_pretrained(base, spec.adapter_path).merge_and_unload()
    return merged.to(device(), getattr(torch, spec.precision)).eval()


def _tokenizer(spec: Task) -> Any:
    """Load the tokenizer; pad with eos, because GPT-2 has no padding token."""
    tokenizer = AutoTokenizer.from_pretrained(spec.model_path)
    tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def _prompts(
    encoder: PromptEncoder, passages: Sequence[Passage], answer_tokens: int
) -> list[tuple[str, torch.Tensor]]:
    """Return question id and token ids of every prompt, longest first."""
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
    """Decode the tokens before the first stop token."""
    end = next((place for place, token in enumerate(row) if token in stops), len(row))
    return tokenizer.decode(row[:end])
