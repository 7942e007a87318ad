"""What stands beside an adapter: all that answering with it needs, and a model card for people.

adapter/
    adapter_config.json, adapter_model.safetensors   PEFT's own
    loraqa.json                                      `AdapterInfo`: base, prompt, data version
    README.md                                        the model card
"""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import try_to_load_from_cache
from pydantic import BaseModel, ConfigDict, ValidationError
from transformers import PreTrainedModel
from transformers.utils import CONFIG_NAME, SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME

from loraqa.errors import InputError
from loraqa.files import read_json, sha256, write_json
from loraqa.squad import Version
from loraqa.train.checkpoint import TrainState
from loraqa.train.settings import ModelSettings, RunSettings

INFO = "loraqa.json"
CARD = "README.md"


class BaseInfo(BaseModel):
    """The base model that an adapter belongs to.

    Attributes:
        source: its folder, as a full path, or its name on the hub.
        revision: the commit, of a model from the hub.
        dtype: that it was computed in.
        random_weights: as in `ModelSettings`.
        sha256: of the weights' file; of the hashes of its shards where it has several.
    """

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid")

    source: str
    revision: str | None
    dtype: str
    random_weights: bool
    sha256: str | None

    def __str__(self) -> str:
        if self.random_weights:
            return f"{self.source} (random weights)"
        marks = {"commit": self.revision, "sha256": self.sha256}
        return f"{self.source} ({', '.join(f'{k} {v}' for k, v in marks.items() if v)})"

    def differs_from(self, other: "BaseInfo") -> bool:
        """Whether what is known of both tells them apart: the weights, or else the commit."""
        if self.sha256 and other.sha256:
            return self.sha256 != other.sha256
        return bool(self.revision and other.revision) and self.revision != other.revision


class AdapterInfo(BaseModel):
    """How prompts were written and what they were put to, so that answers are asked for alike.

    Attributes:
        base: the base model.
        template, max_length, stride: as for `PromptEncoder`.
        max_answer_tokens: the longest answer scored while training.
        version: "2.0" where some of the training questions had no answer.
    """

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid")

    base: BaseInfo
    template: str
    max_length: int
    stride: int
    max_answer_tokens: int
    version: Version


def describe_base(settings: ModelSettings, model: PreTrainedModel) -> BaseInfo:
    """Say which base model this is: a name of the hub by its commit, any by its weights' hash."""
    given = Path(settings.source).expanduser()
    local = given.is_dir()
    folder = given if local else _downloaded(settings)
    # A download's folder is named after its commit.
    revision = folder.name if folder else settings.revision
    return BaseInfo(
        source=str(given.resolve()) if local else settings.source,
        revision=None if local else revision,
        dtype=str(model.dtype).removeprefix("torch."),
        random_weights=settings.random_weights,
        sha256=_weights_hash(folder) if folder and not settings.random_weights else None,
    )


def write_adapter_info(folder: Path, info: AdapterInfo) -> None:
    """Write `loraqa.json`."""
    write_json(folder / INFO, info.model_dump(mode="json"))


def read_adapter_info(folder: Path) -> AdapterInfo:
    """Read `loraqa.json`. Raises `InputError` where it is missing or broken."""
    path = folder / INFO
    try:
        return AdapterInfo.model_validate(read_json(path))
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"]))
        raise InputError(f"{path}: {key or 'the file'}: {first['msg']}.") from None


def model_card(
    info: AdapterInfo,
    settings: RunSettings,
    state: TrainState,
    data: Mapping[str, Any],
    command: str,
) -> str:
    """The model card of an adapter: scores, base, data, command and settings."""
    return _CARD.format(
        base=info.base,
        base_name=info.base.source,
        scores=_scores(state),
        steps=state.step,
        minutes=state.training_seconds / 60,
        train=data["train"]["source"],
        questions=data["train"]["questions"],
        sha256=data["train"]["sha256"],
        command=command,
        settings=settings.to_yaml().rstrip(),
    )


def merged_card(info: AdapterInfo) -> str:
    """The model card of a model with an adapter merged into it."""
    return _MERGED_CARD.format(
        base=info.base,
        base_name=info.base.source,
        dtype=info.base.dtype,
        template=info.template.replace("\n", "\n    "),
    )


_CARD = """\
---
library_name: peft
base_model: {base_name}
pipeline_tag: question-answering
tags: [lora, loraqa, question-answering]
---

# A LoRA adapter that answers questions about a text

Base model: {base}.

{scores}

Trained for {steps:,} optimizer steps ({minutes:.1f} minutes) on the {questions:,} questions of
`{train}` (sha256 of the passages: `{sha256}`).

Ask it with loraqa (`loraqa ask`, or `Reader.load` from Python); `loraqa.json` says how its prompts
are written. PEFT loads it too: `PeftModel.from_pretrained(base, FOLDER)`.

Made by

    {command}

with these settings:

```yaml
{settings}
```
"""


_MERGED_CARD = """\
---
library_name: transformers
base_model: {base_name}
pipeline_tag: question-answering
tags: [lora, loraqa, question-answering]
---

# A model that answers questions about a text

Base model: {base}. A LoRA adapter is merged into its weights, so transformers loads it alone:
`AutoModelForCausalLM.from_pretrained(FOLDER)`.

The weights are in {dtype}, whatever dtype the adapter was trained over: bfloat16 would round parts
of the update away. Where half the size matters more than the last bit, load them with
`dtype="bfloat16"`. The adapter's own card, with its scores and settings, is `adapter.md`.

Ask it with loraqa (`loraqa ask`, or `Reader.load` from Python); `loraqa.json` says how its prompts
are written:

    {template}
"""


def _scores(state: TrainState) -> str:
    best = state.best
    if best is None:
        return "Not scored, for want of dev data: these are the weights of the last step."
    rows = {"before training": state.baseline, f"these weights, of step {best.step}": best}
    return "\n".join(
        [
            f"Greedy answers to {best.total:,} dev questions:",
            "",
            "| | exact match | F1 |",
            "|---|---|---|",
            *(f"| {name} | {e.exact_match:.2f} | {e.f1:.2f} |" for name, e in rows.items() if e),
        ]
    )


def _downloaded(settings: ModelSettings) -> Path | None:
    """The folder in the hub's cache that a model was loaded from."""
    config = try_to_load_from_cache(settings.source, CONFIG_NAME, revision=settings.revision)
    return Path(config).parent if isinstance(config, str) else None


def _weights_hash(folder: Path) -> str | None:
    """See `BaseInfo.sha256`; None where the weights have other names than transformers'."""
    whole, index = folder / SAFE_WEIGHTS_NAME, folder / SAFE_WEIGHTS_INDEX_NAME
    if whole.exists():
        return sha256(whole)
    if not index.exists():
        return None
    shards = sorted(set(read_json(index)["weight_map"].values()))
    hashes = "".join(sha256(folder / name) for name in shards)
    return hashlib.sha256(hashes.encode()).hexdigest()
