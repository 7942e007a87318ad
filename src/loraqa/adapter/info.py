"""The file `loraqa.json` of an adapter folder."""

from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from loraqa.errors import InputError
from loraqa.files import read_json, write_json
from loraqa.squad import Version

INFO = "loraqa.json"


class BaseInfo(BaseModel):
    """The base model that an adapter belongs to.

    Attributes:
        source: full path of the model's folder, or its name on the hub.
        revision: commit of a model from the hub; None for a folder.
        dtype: dtype of the weights, such as "float32".
        random_weights: whether the weights are random and not loaded, as for `load_base`.
        sha256: hash of the weights' file, or of the hashes of its shards if it has several.
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
        """Whether the weights' hashes differ, or the commits if a hash is unknown."""
        if self.sha256 and other.sha256:
            return self.sha256 != other.sha256
        return bool(self.revision and other.revision) and self.revision != other.revision


class AdapterInfo(BaseModel):
    """The base model of an adapter and the prompts of its training, needed to answer alike.

    Attributes:
        base: the base model.
        template, max_length, stride: as for `PromptEncoder`.
        max_answer_tokens: length of the longest answer that training scored, in tokens.
        version: "2.0" if some of the training questions had no answer.
    """

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid")

    base: BaseInfo
    template: str
    max_length: int
    stride: int
    max_answer_tokens: int
    version: Version


def write_adapter_info(folder: Path, info: AdapterInfo) -> None:
    """Write `loraqa.json`."""
    write_json(folder / INFO, info.model_dump(mode="json"))


def read_adapter_info(folder: Path) -> AdapterInfo:
    """Read `loraqa.json`. Raises `InputError` if it is missing or broken."""
    path = folder / INFO
    try:
        return AdapterInfo.model_validate(read_json(path))
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"]))
        raise InputError(f"{path}: {key or 'the file'}: {first['msg']}.") from None
