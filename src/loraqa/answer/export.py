"""Export a run: its adapter for PEFT, or a plain transformers model with the adapter merged.

A weighted sum of several runs is exported as an adapter, too.
"""

import shutil
from collections.abc import Mapping
from pathlib import Path

import torch
from transformers import PreTrainedModel

from loraqa.adapter.card import CARD, merged_card, sum_card
from loraqa.adapter.choice import parse_choice
from loraqa.adapter.find import adapter_of
from loraqa.adapter.info import AdapterInfo, write_adapter_info
from loraqa.answer.load import load_adapted, load_adapters
from loraqa.answer.readers import check_same_template
from loraqa.files import (
    check_new_folder,
    replacing_folder,
    write_text,
    writing_a_tokenizer,
    writing_tensors,
)
from loraqa.lora.adapt import install
from loraqa.lora.adapter import save_adapter
from loraqa.lora.merge import merge_and_unload
from loraqa.lora.weighted import weighted_sum
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
        _write_adapter(model, info, folder)
        _copy_card(run, folder / CARD)


def export_sum(
    choice: str, sources: Mapping[str, Path], out: Path, *, base: str | None = None
) -> None:
    """Write a weighted sum of adapters as one adapter in PEFT's format.

    Its prompts and lengths are those of the first adapter in the sum; it has no calibration, which
    would be that of other answers.

    Args:
        choice: the sum, such as "law:0.7+news:0.3".
        sources: a run or an adapter folder for each name.
        out: new folder.
        base: as for `load_model`.

    Raises:
        InputError: as for `load_adapters` and `Readers.choose`, or `out` exists.
    """
    check_new_folder(out)
    weights = parse_choice(choice, sources)
    chosen = {name: sources[name] for name in weights}
    model, _, adapters = load_adapters(chosen, base=base)
    check_same_template({name: adapter.info.template for name, adapter in adapters.items()})
    layers = {name: adapter.layers for name, adapter in adapters.items()}
    install(model, weighted_sum(weights, layers))
    info = adapters[next(iter(weights))].info.model_copy(update={"calibration": None})
    with replacing_folder(out) as folder:
        _write_adapter(model, info, folder)
        terms = {str(chosen[name]): weight for name, weight in weights.items()}
        write_text(folder / CARD, sum_card(info, terms))


def export_merged(run: Path, out: Path, *, base: str | None = None) -> float:
    """Write a plain transformers model in float32 with the adapter merged into its weights.

    It is float32 whatever the run's dtype, because bfloat16 would round small updates away; and the
    weights are those of the base's files, even if the run kept them in int8.

    Returns:
        The largest change of a logit by merging, which is rounding only.

    Raises:
        InputError: `run` has no adapter, or `out` exists.
        LoraqaError: merging changed the logits by more than rounding; nothing is written.
    """
    check_new_folder(out)
    model, tokenizer, info = load_adapted(
        run, base=base, dtype="float32", quantisation="none", device="cpu"
    )
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


def _write_adapter(model: PreTrainedModel, info: AdapterInfo, folder: Path) -> None:
    save_adapter(model, folder, base_name=info.base.source, revision=info.base.revision)
    write_adapter_info(folder, info)


def _copy_card(run: Path, to: Path) -> None:
    card = adapter_of(run) / CARD
    if card.is_file():
        shutil.copyfile(card, to)
