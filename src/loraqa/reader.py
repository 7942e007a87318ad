"""The recipe of answering: load a model and its adapter, choose a runner, accelerate it, answer.

reader = Reader.load("runs/squad")
for answer in reader.answer("Salt came from the hills.", ["Where did salt come from?"]):
    print(answer.text, answer.start, answer.end, answer.log_probability)

Several adapters over one base:

readers = load_readers({"law": "runs/law", "news": "runs/news"})
readers["law"].answer(…)
readers.choose("law:0.7+news:0.3").answer(…)
"""

import hashlib
import json
import logging
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import transformers

from loraqa import __version__
from loraqa.adapter.base import describe_base
from loraqa.adapter.choice import check_name
from loraqa.adapter.find import find_adapter
from loraqa.adapter.info import INFO, AdapterInfo
from loraqa.answer.load import Loaded, load_adapters, load_model
from loraqa.answer.reader import Reader as PlainReader
from loraqa.answer.readers import Readers
from loraqa.files import sha256
from loraqa.lora.activated import invocation_of
from loraqa.lora.settings import ADAPTER_CONFIG, TENSORS
from loraqa.lora.switch import fit, make_switched, using
from loraqa.model.choose import choose_runner
from loraqa.model.memory import tokens_at_once
from loraqa.model.runner import Runner
from loraqa.model.source import position_limit
from loraqa.prompt.chat import chat_template
from loraqa.prompt.encode import PromptEncoder
from loraqa.prompt.invocation import check_invocation
from loraqa.prompt.segments import SegmentTokenizer
from loraqa.prompt.template import CHAT, DEFAULT_TEMPLATE, Template
from loraqa.speed.start import accelerated_preparation
from loraqa.speed.trial import fastest

logger = logging.getLogger("loraqa")


@dataclass(frozen=True)
class Reader(PlainReader):
    """A reader with `load`, which uses all accelerations that work on this machine."""

    @classmethod
    def load(
        cls,
        source: str | Path,
        *,
        base: str | Path | None = None,
        dtype: str | None = None,
        quantisation: str | None = None,
        device: str = "auto",
        template: str | None = None,
        tokens_per_batch: int | None = None,
        without: str | Collection[str] = (),
    ) -> "Reader":
        """Load a run, an adapter folder, a merged model, or a model that was not fine-tuned.

        Prompts are written as in training; those of a model that was not fine-tuned by the default
        template. On a CPU weights are packed for answering (see `prepacked-weights`), so the model
        can be neither trained nor saved.

        Args:
            source, base, dtype, quantisation, device: as for `load_model`.
            template: how prompts are written instead; "chat" is the tokenizer's chat template.
            tokens_per_batch: as for `Reader`; None is as many as fit, or few on a CPU.
            without: names of accelerations to leave out, or "all"; a text may have several names
                with commas between.

        Raises:
            InputError: as for `load_model`, a name in `without` is unknown, or there is no such
                template.
        """
        preparation = accelerated_preparation(without)
        loaded = load_model(
            source, base=base, dtype=dtype, quantisation=quantisation, device=device
        )
        tokenizer = preparation.wrap_tokenizer(SegmentTokenizer.from_transformers(loaded.tokenizer))
        tokens, info = tokens_per_batch or tokens_at_once(loaded.model), loaded.info
        max_length = info.max_length if info else position_limit(loaded.model.config)
        plain = choose_runner(loaded.model, max_length)
        prompts = _template(template, loaded, source)
        if invocation := invocation_of(loaded.model):
            encoder = PromptEncoder(tokenizer, prompts, max_length, info.stride if info else 0)
            check_invocation(encoder, invocation)
        runner, accelerations = fastest(plain, ["answering"], without)
        return cls(
            runner,
            tokenizer,
            prompts,
            **(_as_trained(info) if info else {"max_length": max_length}),
            tokens_per_batch=tokens,
            identify=partial(_identify, Path(source).expanduser(), loaded, plain, accelerations),
        )


def load_readers(
    sources: Mapping[str, str | Path],
    *,
    base: str | Path | None = None,
    dtype: str | None = None,
    device: str = "auto",
    template: str | None = None,
    tokens_per_batch: int | None = None,
    without: str | Collection[str] = (),
) -> Readers:
    """Load several runs or adapter folders over one base model, which is in memory once.

    Each has a reader that answers as one from `Reader.load`. On a CPU its logits may differ from
    that one's by rounding, because its update is computed apart from the packed weights.

    Args:
        sources: a run or an adapter folder for each name.
        base, dtype, device: as for `load_adapters`.
        template, tokens_per_batch, without: as for `Reader.load`, for all readers.

    Raises:
        InputError: as for `load_adapters` and `Reader.load`, or a name has other characters than
            letters, digits, dots, dashes and underscores.
    """
    for name in sources:
        check_name(name)
    preparation = accelerated_preparation(without)
    model, transformers_tokenizer, adapters = load_adapters(
        sources, base=base, dtype=dtype, device=device
    )
    tokenizer = preparation.wrap_tokenizer(
        SegmentTokenizer.from_transformers(transformers_tokenizer)
    )
    tokens = tokens_per_batch or tokens_at_once(model)
    layers = {name: adapter.layers for name, adapter in adapters.items()}
    make_switched(model, layers.values())
    plain = choose_runner(model, max(adapter.info.max_length for adapter in adapters.values()))
    runner, accelerations = fastest(plain, ["answering"], without)
    readers = {}
    for name, adapter in adapters.items():
        loaded = Loaded(model, transformers_tokenizer, adapter.info)
        readers[name] = Reader(
            runner,
            tokenizer,
            _template(template, loaded, adapter.folder),
            **_as_trained(adapter.info),
            tokens_per_batch=tokens,
            using=partial(using, fit(model, adapter.layers)),
            identify=partial(
                _identify, adapter.folder, loaded, plain, [*accelerations, "several adapters"]
            ),
        )
        invocation = next(iter(adapter.layers.values())).invocation
        if invocation:
            check_invocation(readers[name].encoder, invocation)
    return Readers(readers, layers)


def _as_trained(info: AdapterInfo) -> dict[str, Any]:
    """Return the attributes of a reader that answers as in training."""
    names = (
        *("max_length", "stride", "window_length", "max_answer_tokens", "learned_no_answer"),
        *("no_answer_threshold", "calibration"),
    )
    return {name: getattr(info, name) for name in names}


def _template(chosen: str | None, loaded: Loaded, source: str | Path) -> Template:
    """Return the template that the user chose, else that of the training, else the default."""
    if chosen is not None:
        return Template(chat_template(loaded.tokenizer) if chosen == CHAT else chosen)
    if loaded.info is not None:
        return Template(loaded.info.template)
    logger.info(
        f"{source} has no {INFO}, so it is a model that was not fine-tuned; its prompts are "
        f"{DEFAULT_TEMPLATE!r}."
    )
    return Template()


def _identify(source: Path, loaded: Loaded, plain: Runner, accelerations: Collection[str]) -> str:
    """See `Reader.identify`."""
    adapter = find_adapter(source)
    if adapter and loaded.info:
        base = loaded.info.base
        files = [sha256(adapter / name) for name in (ADAPTER_CONFIG, TENSORS)]
    else:
        tokenizer = SegmentTokenizer.from_transformers(loaded.tokenizer)
        base, files = describe_base(source, loaded.model, tokenizer), []
    facts = {
        "base": base.model_dump(),
        "adapter": files,
        "device": str(loaded.model.device),
        "runner": type(plain).__name__,
        "accelerations": list(accelerations),
        "threads": torch.get_num_threads(),
        "processor": torch.backends.cpu.get_cpu_capability(),
        "versions": [__version__, torch.__version__, transformers.__version__],
    }
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()
