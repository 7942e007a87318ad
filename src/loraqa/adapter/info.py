"""The file `loraqa.json` of an adapter folder."""

import hashlib
import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from loraqa.errors import InputError, quote, some_of
from loraqa.files import read_json, sha256, write_json
from loraqa.lora.settings import ADAPTER_CONFIG, TENSORS
from loraqa.model.folder import CONFIG, read_object, tokenizer_files, weights
from loraqa.prompt.template import Template
from loraqa.squad import Version

logger = logging.getLogger("loraqa")

INFO = "loraqa.json"
# The key of `loraqa.json` that holds the hashes.
_HASHES = "sha256"
# Where the base is, which may be corrected by hand.
_PLACE = ("source", "revision")
_AGAIN = "copy the folder again from where it came from"


class BaseInfo(BaseModel):
    """The base model that an adapter belongs to.

    Attributes:
        source: full path of the model's folder or GGUF file, or its name on the hub.
        revision: commit of a model from the hub; None for a folder or file.
        dtype: dtype of the weights, such as "float32".
        quantisation: "int8" if linear layers kept their weights in one byte each, else "none".
        random_weights: whether the weights are random and not loaded, as for `load_base`.
        sha256: hash of the weights' file or GGUF file, or of the hashes of several shards.
        config: the model's configuration, without keys that change nothing.
        tokenizer_sha256: hash of everything that decides which ids a text gets.

    Files of older versions lack the last two, and the quantisation.
    """

    model_config = ConfigDict(frozen=True, strict=True, extra="ignore")

    source: str
    revision: str | None
    dtype: str
    quantisation: Literal["none", "int8"] = "none"
    random_weights: bool
    sha256: str | None
    config: dict[str, Any] | None = None
    tokenizer_sha256: str | None = None

    def __str__(self) -> str:
        if self.random_weights:
            return f"{self.source} (random weights)"
        marks = {"commit": self.revision, "sha256": self.sha256}
        return f"{self.source} ({', '.join(f'{k} {v}' for k, v in marks.items() if v)})"

    def changes(self, now: "BaseInfo") -> list[str]:
        """Name the parts that differ, of those that are known of both."""
        parts = (
            ("weights", self._weights_differ(now)),
            (f"configuration ({self._changed_keys(now)})", bool(self._changed_keys(now))),
            ("tokenizer", _both(self.tokenizer_sha256, now.tokenizer_sha256)),
        )
        return [name for name, differs in parts if differs]

    def _weights_differ(self, now: "BaseInfo") -> bool:
        if self.sha256 and now.sha256:
            return self.sha256 != now.sha256
        return _both(self.revision, now.revision)

    def _changed_keys(self, now: "BaseInfo") -> str:
        """Name keys of the configuration with both values. Other versions may know other keys."""
        before, after = self.config or {}, now.config or {}
        changed = [key for key in before if key in after and before[key] != after[key]]
        return some_of(
            [f"{key} was {_short(before[key])}, now {_short(after[key])}" for key in changed], 3
        )


def _short(value: object) -> str:
    text = str(value)
    return text if len(text) <= 40 else f"{text[:40]}…"


def _both(one: str | None, other: str | None) -> bool:
    """Whether two values are known, and differ."""
    return bool(one and other) and one != other


class BetaCurve(BaseModel):
    """The probability 1 / (1 + exp(-(a ln p - b ln(1 - p) + c))) of an event by a number p.

    This is beta calibration (Kull, Silva Filho and Flach 2017); with a = b it is Platt's.
    """

    model_config = ConfigDict(frozen=True, strict=True, extra="ignore", allow_inf_nan=False)

    a: float = Field(ge=0)
    b: float = Field(ge=0)
    c: float


class Calibration(BaseModel):
    """How often an answer is right, by what the model thinks of it.

    Attributes:
        answer: by an answer's share of the probability of all spans.
        no_answer: of "no answer", by its probability against the best answer; None for a model that
            never says it.
        questions: how many questions it was fitted on.
    """

    model_config = ConfigDict(frozen=True, strict=True, extra="ignore")

    answer: BetaCurve
    no_answer: BetaCurve | None = None
    questions: int = Field(ge=1)


class AdapterInfo(BaseModel):
    """The base model of an adapter and the prompts of its training, needed to answer alike.

    Attributes:
        base: the base model.
        template, max_length, stride: as for `PromptEncoder`.
        max_answer_tokens: length of the longest answer that training scored, in tokens.
        version: "2.0" if some of the training questions had no answer.
        window_length: how many tokens of a text that is longer than `max_length` are read at once;
            None is as many as fit.
        learned_no_answer: whether the model has learned to say that a text holds no answer.
        no_answer_threshold: from which probability on it says "no answer"; None is never.
        calibration: the confidence of its answers; None if it was not fitted.

    Files of older versions lack the last four.
    """

    model_config = ConfigDict(frozen=True, strict=True, extra="ignore")

    base: BaseInfo
    template: str
    max_length: int = Field(ge=1)
    stride: int = Field(ge=0)
    max_answer_tokens: int = Field(ge=1)
    version: Version
    window_length: int | None = Field(default=None, ge=1)
    learned_no_answer: bool = False
    no_answer_threshold: float | None = Field(default=None, ge=0, le=1)
    calibration: Calibration | None = None

    @model_validator(mode="before")
    @classmethod
    def _complete(cls, values: Any) -> Any:
        """Add what files of older versions leave to the version of the data."""
        if isinstance(values, dict) and values.get("version") == "2.0":
            return {"learned_no_answer": True, "no_answer_threshold": 0.5, **values}
        return values


def write_adapter_info(folder: Path, info: AdapterInfo) -> None:
    """Write `loraqa.json`, with hashes of what it says and of the files that are in the folder."""
    values = info.model_dump(mode="json")
    write_json(folder / INFO, values | {_HASHES: _hashes(folder, values)})


def read_adapter_info(folder: Path) -> AdapterInfo:
    """Read `loraqa.json`, and compare the hashes in it.

    Keys of newer versions cause a warning. Hashes that an older version did not write are not
    compared.

    Raises:
        InputError: it is missing or broken, or it, the tensors or the configuration were changed
            after it was written.
    """
    path = folder / INFO
    values = read_object(path)
    try:
        info = AdapterInfo.model_validate(values)
        Template(info.template)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"]))
        raise InputError(f"{path}: {key}: {first['msg']}; {_AGAIN}.") from None
    except InputError as error:
        raise InputError(f"{path}: {str(error).removesuffix('.')}; {_AGAIN}.") from None
    _warn_of_unknown_keys(path, values)
    _check_hashes(folder, values)
    return info


def _warn_of_unknown_keys(path: Path, values: Mapping[str, Any]) -> None:
    unknown = values.keys() - AdapterInfo.model_fields.keys() - {_HASHES}
    unknown |= {f"base.{key}" for key in values["base"].keys() - BaseInfo.model_fields.keys()}
    if unknown:
        logger.warning(
            f"{path} has keys that this version of loraqa does not know: "
            f"{quote(some_of(sorted(unknown), 3))}; they are ignored, and a newer version may "
            "answer differently."
        )


def _check_hashes(folder: Path, values: Mapping[str, Any]) -> None:
    recorded = values.get(_HASHES)
    if not isinstance(recorded, dict):
        return
    now = _hashes(folder, values)
    if changed := [name for name in now if recorded.get(name, now[name]) != now[name]]:
        raise InputError(
            f"{folder} is damaged, or was changed since loraqa wrote it: the hashes in {INFO} do "
            f"not fit {' and '.join(changed)}; {_AGAIN}, or, if the change is yours, take "
            f'"{_HASHES}" out of {INFO}.'
        )


def _hashes(folder: Path, values: Mapping[str, Any]) -> dict[str, str]:
    """Return the SHA-256 of what `loraqa.json` says, and of the files beside it.

    These are the files of an adapter or of a merged model.
    """
    said = {key: value for key, value in values.items() if key != _HASHES}
    hashes = {INFO: _hash_of({**said, "base": {**said["base"], **dict.fromkeys(_PLACE)}})}
    if (folder / TENSORS).exists():
        hashes[TENSORS] = sha256(folder / TENSORS)
    if (folder / ADAPTER_CONFIG).exists():
        hashes[ADAPTER_CONFIG] = _hash_of(_essentials(read_json(folder / ADAPTER_CONFIG)))
    elif (folder / CONFIG).exists():
        hashes[CONFIG] = _hash_of({**read_object(folder / CONFIG), "transformers_version": None})
        files = [*weights(folder), *tokenizer_files(folder)]
        hashes |= {path.name: sha256(path) for path in files}
    return hashes


def _hash_of(value: Any) -> str:
    """Return the SHA-256 of a JSON value, whatever the order of its keys."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def _essentials(config: Any) -> Any:
    """Return the keys of an adapter's configuration that decide what it computes.

    The name of the base may be corrected by hand, and PEFT adds keys with empty values.
    """
    if not isinstance(config, dict):
        return config
    names = ("base_model_name_or_path", "revision", "peft_version", "inference_mode")
    return {key: value for key, value in config.items() if value and key not in names}
