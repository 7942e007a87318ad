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

from pydantic import BaseModel, ConfigDict, ValidationError
from transformers import PreTrainedModel

from loraqa.errors import InputError
from loraqa.files import read_json, sha256, write_json
from loraqa.squad import Version
from loraqa.train.checkpoint import TrainState
from loraqa.train.settings import ModelSettings, RunSettings

INFO = "loraqa.json"


class BaseInfo(BaseModel):
    """The base model that an adapter belongs to.

    `revision` is the commit of a model from the hub; `sha256` is that of the weights in a folder.
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
        mark = f"sha256 {self.sha256}" if self.sha256 else f"commit {self.revision}"
        return f"{self.source} ({mark})"


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
    """Say which base model this is: a folder by the hash of its weights, a hub name by commit."""
    folder = Path(settings.source).expanduser()
    local = folder.is_dir()
    return BaseInfo(
        source=str(folder.resolve()) if local else settings.source,
        revision=None if local else getattr(model.config, "_commit_hash", settings.revision),
        dtype=str(model.dtype).removeprefix("torch."),
        random_weights=settings.random_weights,
        sha256=_weights_hash(folder) if local and not settings.random_weights else None,
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
    """The text of `README.md`: scores, base, data, command and settings."""
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


def _weights_hash(folder: Path) -> str:
    """SHA-256 of the weights' file; of the hashes of its shards where it has several."""
    hashes = [sha256(path) for path in sorted(folder.glob("*.safetensors"))]
    return hashes[0] if len(hashes) == 1 else hashlib.sha256("".join(hashes).encode()).hexdigest()
