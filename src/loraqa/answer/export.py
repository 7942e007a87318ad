"""Export a run: its adapter for PEFT, or a plain transformers model with the adapter merged."""

import shutil
from pathlib import Path

import torch

from loraqa.adapter.card import CARD, merged_card
from loraqa.adapter.find import adapter_of
from loraqa.adapter.info import write_adapter_info
from loraqa.answer.load import load_adapted
from loraqa.files import (
    check_new_folder,
    replacing_folder,
    write_text,
    writing_a_tokenizer,
    writing_tensors,
)
from loraqa.lora.adapter import save_adapter
from loraqa.lora.merge import merge_and_unload
from loraqa.model.quiet import no_bars

# The adapter's model card, beside the merged model's card.
_ADAPTER_CARD = "adapter.md"
# Number of random tokens on which to compare the logits before and after merging.
_CHECKED_TOKENS = 64


def export_adapter(run: Path, out: Path, *, base: str | None = None) -> None:
    """Write a run's adapter in PEFT's format, with its prompt settings and model card.

    Raises:
        InputError: `run` has no adapter, or `out` exists.
    """
    check_new_folder(out)
    model, _, info = load_adapted(run, base=base)
    with replacing_folder(out) as folder:
        save_adapter(model, folder, base_name=info.base.source, revision=info.base.revision)
        write_adapter_info(folder, info)
        _copy_card(run, folder / CARD)


def export_merged(run: Path, out: Path, *, base: str | None = None) -> float:
    """Write a plain transformers model in float32 with the adapter merged into its weights.

    It is float32 whatever the run's dtype, because bfloat16 would round small updates away.

    Returns:
        The largest change of a logit by merging, which is rounding only.

    Raises:
        InputError: `run` has no adapter, or `out` exists.
        LoraqaError: merging changed the logits by more than rounding; nothing is written.
    """
    check_new_folder(out)
    model, tokenizer, info = load_adapted(run, base=base, dtype="float32", device="cpu")
    vocabulary = model.config.get_text_config().vocab_size
    shape = (1, min(_CHECKED_TOKENS, info.max_length))
    generator = torch.Generator().manual_seed(0)
    change = merge_and_unload(model, torch.randint(vocabulary, shape, generator=generator))
    with replacing_folder(out) as folder:
        with no_bars(), writing_tensors(out):
            model.save_pretrained(folder)
        with writing_a_tokenizer(out):
            tokenizer.save_pretrained(folder)
        write_adapter_info(folder, info)
        write_text(folder / CARD, merged_card(info))
        _copy_card(run, folder / _ADAPTER_CARD)
    return change


def _copy_card(run: Path, to: Path) -> None:
    card = adapter_of(run) / CARD
    if card.is_file():
        shutil.copyfile(card, to)
