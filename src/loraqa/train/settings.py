"""The settings of a run: defaults, then YAML files, then `key=value` from the command line.

    optimisation:
      learning_rate: 3e-4
      epochs: 3
    lora:
      rank: 8

The same from the command line: `--set optimisation.learning_rate=3e-4 --set lora.rank=8`.
"""

import difflib
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, Strict, ValidationError, field_validator
from pydantic_core import ErrorDetails

from loraqa.errors import InputError, in_a_line, quote, shortened
from loraqa.lora.settings import LoraSettings
from loraqa.model.folder import is_local
from loraqa.prompt.defaults import DEFAULT_STRIDE
from loraqa.prompt.template import CHAT, DEFAULT_TEMPLATE, Template
from loraqa.squad.text import decode, is_binary
from loraqa.train.start import settings_of

Share = Annotated[float, Field(ge=0, lt=1)]


class _Group(BaseModel):
    model_config = ConfigDict(
        frozen=True, strict=True, extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True
    )


class ModelSettings(_Group):
    """The base model."""

    source: str
    """A local folder, a GGUF file, or a model's name on the hub."""
    revision: str | None = None
    """Branch, tag or commit on the hub."""
    dtype: Literal["auto", "float32", "bfloat16", "float64"] = "auto"
    """Dtype of the frozen weights; `auto` is bfloat16 if the device computes in it."""
    quantisation: Literal["none", "int8"] = "none"
    """Whether linear layers keep their frozen weights in `dtype`, or rounded to one byte each."""
    device: str = "auto"
    """A torch device; `auto` is a GPU if there is one."""
    random_weights: bool = False
    """Whether to draw the weights at random; for tests and benchmarks only."""


class DataSettings(_Group):
    """The questions: files, or data sets on the hub."""

    train: str
    """Questions to train on."""
    dev: str | None = None
    """Questions to score on during training; without them the last weights are kept."""
    on_bad: Literal["stop", "skip"] = "stop"
    """Whether a bad question stops the run, or is skipped and counted."""
    negatives: Share = 0.5
    """Share of the questions that are also asked on a context without their answer."""
    held_out: int = Field(default=400, ge=0)
    """Questions not trained on, to calibrate confidence by; a tenth at most, of 500 or more."""


class PromptSettings(_Group):
    """How prompts are written."""

    template: str = DEFAULT_TEMPLATE
    """Text with {context}, {question}, {answer}; `twice` repeats {context}; `chat`: the base's."""
    max_length: int | None = Field(default=None, ge=32)
    """Maximum tokens of context, question and answer together; null is the model's limit."""
    stride: int = Field(default=DEFAULT_STRIDE, ge=0)
    """Tokens that two windows of a long context share; 128 as in BERT's SQuAD code."""

    @field_validator("template")
    @classmethod
    def _well_formed(cls, text: str) -> str:
        return text if text == CHAT else Template(text).text


class OptimisationSettings(_Group):
    """AdamW and its schedule. The defaults suit LoRA on GPT-2 and SQuAD."""

    epochs: int | None = Field(default=None, ge=1)
    """Passes over the data; null: as `max_steps` takes, else two, or up to ten to make 40 steps."""
    max_steps: int | None = Field(default=None, ge=1)
    """Optimizer steps of the run, fewer if `epochs` ends first; null limits it by `epochs` only."""
    questions_per_step: int = Field(default=32, ge=1)
    """Each optimizer step takes whole passages until they hold this many questions."""
    tokens_per_batch: int = Field(default=4096, ge=1)
    """Maximum tokens computed at once; in scoring, four times as many. Changes the rounding."""
    learning_rate: float = Field(default=1e-3, gt=0)
    """Peak learning rate: ten to twenty times that of full fine-tuning (5e-5 for GPT-2)."""
    b_rate_ratio: float = Field(default=1.0, gt=0)
    """Learning rate of B divided by that of A; more than 1 is LoRA+."""
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    """How the learning rate changes after the warm-up; all but `constant` fall to 0."""
    warmup: Share = 0.05
    """Share of all steps over which the learning rate rises to its peak."""
    weight_decay: float = Field(default=0.01, ge=0)
    """Decoupled weight decay (AdamW); 0.01 as in the LoRA paper's GPT-2 runs."""
    betas: Annotated[tuple[Share, Share], Strict(False)] = (0.9, 0.999)
    """Decay rates of AdamW's two running means."""
    clip_norm: float | None = Field(default=1.0, gt=0)
    """Gradients with a larger norm are scaled down to this norm; null turns clipping off."""


class EvaluationSettings(_Group):
    """Scoring generated answers to the dev questions before, during and after training."""

    every: int = Field(default=500, ge=1)
    """Optimizer steps between two evaluations."""
    questions: int | None = Field(default=500, ge=1)
    """Whole passages are sampled until they hold this many questions; null takes all."""
    max_answer_tokens: int | None = Field(default=None, ge=1)
    """Maximum tokens of an answer, its end included; null is 32, or more if answers are longer."""
    metric: Literal["f1", "exact_match"] = "f1"
    """The score that selects the best weights."""
    patience: int | None = Field(default=None, ge=1)
    """Stop after this many evaluations in a row without a better score; null never stops early."""


class CheckpointSettings(_Group):
    """Checkpoints to resume from."""

    every: int = Field(default=200, ge=1)
    """Optimizer steps between two checkpoints."""
    keep: int = Field(default=2, ge=1)
    """Number of newest checkpoints to keep; the best ones that they know are kept too."""


class SpeedSettings(_Group):
    """Accelerations. All of them compute what the plain algorithm computes."""

    without: Annotated[tuple[str, ...], Strict(False)] = ()
    """Accelerations to leave out (names with commas between), or `all`; see architecture.md."""
    kept_trunks: float = Field(default=4.0, ge=0)
    """Disk in GiB for contexts' keys and values, which an activated LoRA keeps; 0 keeps none."""

    @field_validator("without", mode="before")
    @classmethod
    def _one_text(cls, value: Any) -> Any:
        if value is None:
            return []
        return [value] if isinstance(value, str) else value


class RunSettings(_Group):
    """All settings of a run."""

    seed: int = Field(default=0, ge=0, lt=2**63)
    """Random seed of the adapter, the order of the data and the dev sample."""
    model: ModelSettings
    data: DataSettings
    prompt: PromptSettings = PromptSettings()
    lora: LoraSettings = LoraSettings()
    optimisation: OptimisationSettings = OptimisationSettings()
    evaluation: EvaluationSettings = EvaluationSettings()
    checkpoint: CheckpointSettings = CheckpointSettings()
    speed: SpeedSettings = SpeedSettings()

    def with_full_paths(self) -> "RunSettings":
        """Return the settings with absolute paths, valid in any working directory."""
        model = {"source": _full_path(self.model.source, is_local)}
        data = {
            "train": _full_path(self.data.train, Path.exists),
            "dev": self.data.dev and _full_path(self.data.dev, Path.exists),
        }
        lora = {"start": self.lora.start and _full_path(self.lora.start, Path.exists)}
        return self.model_copy(
            update={
                "model": self.model.model_copy(update=model),
                "data": self.data.model_copy(update=data),
                "lora": self.lora.model_copy(update=lora),
            }
        )

    def with_template(self) -> "RunSettings":
        """Return the settings with the text of the base's chat template in the place of `chat`.

        Raises:
            InputError: the base's tokenizer cannot be loaded, or has no chat template.
        """
        if self.prompt.template != CHAT:
            return self
        # Loads the tokenizers library, and then transformers.
        from loraqa.model.source import template_of

        model = self.model
        text = template_of(self.prompt.template, model.source, model.revision)
        return self.model_copy(update={"prompt": self.prompt.model_copy(update={"template": text})})

    def with_values(self, values: Mapping[str, Any]) -> "RunSettings":
        """Return the settings with other values by dotted key, such as {"lora.rank": 8}.

        Raises `InputError` as `load_settings` does.
        """
        merged = self.model_dump(mode="json")
        for key, value in values.items():
            merged = _merge(merged, _nested(key, value))
        return parse_settings(merged)

    def to_yaml(self) -> str:
        """Return all settings, including defaults, as YAML."""
        values = self.model_dump(mode="json")
        return yaml.dump(values, Dumper=_Dumper, sort_keys=False, allow_unicode=True)


def load_settings(files: Iterable[Path] = (), overrides: Iterable[str] = ()) -> RunSettings:
    """Return the settings from YAML files and `key=value` overrides; later values win.

    Args:
        files: YAML files of nested groups.
        overrides: dotted keys and values, as in `lora.rank=16`; values of settings that are not
            text are read as YAML.

    Raises:
        InputError: a file is missing or not YAML; a key is unknown, missing or has a wrong value;
            there is no adapter at `lora.start`.
    """
    values: dict[str, Any] = {group: {} for group in _GROUPS}
    for file in files:
        values = _merge(values, read_yaml(file))
    for override in overrides:
        values = _merge(values, _read_override(override))
    return parse_settings(values)


def choose_settings(
    files: Iterable[Path], flags: Mapping[str, str | int | None], overrides: Iterable[str]
) -> RunSettings:
    """Return the settings from files, flags and overrides, with full paths; later ones win.

    Args:
        files: YAML files.
        flags: dotted key to value; None leaves a setting as it is.
        overrides: texts such as "lora.rank=8".

    Raises:
        InputError: as for `load_settings` and `with_template`.
    """
    given = [f"{key}={value}" for key, value in flags.items() if value is not None]
    return load_settings(files, [*given, *overrides]).with_full_paths().with_template()


def parse_settings(values: Mapping[str, Any]) -> RunSettings:
    """Return the settings from nested groups. Raises `InputError` as `load_settings` does."""
    try:
        return RunSettings.model_validate(_with_those_of_start(values))
    except ValidationError as error:
        raise InputError(" ".join(_explanations(error.errors()))) from None


def _with_those_of_start(values: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the values, and those of the adapter at `lora.start` where none are given.

    The settings that a run has written are complete. So the adapter is not read again, and need not
    be there any more.
    """
    lora, model = values.get("lora"), values.get("model")
    start = lora.get("start") if isinstance(lora, dict) else None
    if lora is None or not isinstance(start, str) or LoraSettings.model_fields.keys() <= {*lora}:
        return values
    adapter = settings_of(start)
    if isinstance(model, dict) and "source" in model:
        # A revision belongs to a place.
        adapter["model"].pop("revision", None)
    return _merge(adapter, values)


def dotted(settings: RunSettings) -> dict[str, Any]:
    """Return the settings by dotted key, such as "lora.rank"."""
    return dict(_leaves(settings.model_dump(mode="json")))


def is_integer(key: str) -> bool:
    """Return whether the setting of a dotted key is an integer."""
    return _TYPES.get(key) in (int, int | None)


def differences(before: RunSettings, after: RunSettings) -> dict[str, tuple[Any, Any]]:
    """Return the dotted keys in which two settings differ, with both values."""
    old, new = dotted(before), dotted(after)
    return {key: (old[key], new[key]) for key in old if old[key] != new[key]}


def _full_path(source: str, is_there: Callable[[Path], bool]) -> str:
    """Return a local path as an absolute one; return hub names and empty names unchanged."""
    path = Path(source).expanduser()
    return str(path.resolve()) if source and is_there(path) else source


_GROUPS = {
    name: kind
    for name, field in RunSettings.model_fields.items()
    if isinstance(kind := field.annotation, type) and issubclass(kind, BaseModel)
}
_TYPES: dict[str, Any] = {"seed": int} | {
    f"{group}.{name}": field.annotation
    for group, kind in _GROUPS.items()
    for name, field in kind.model_fields.items()
}
_TEXT_KEYS = {key for key, kind in _TYPES.items() if kind in (str, str | None)}

OTHER_NAMES = {
    "model_name_or_path": "model.source",
    "max_seq_length": "prompt.max_length",
    "doc_stride": "prompt.stride",
    "r": "lora.rank",
    "lora_alpha": "lora.alpha",
    "lora_dropout": "lora.dropout",
    "use_rslora": "lora.rank_stabilised",
    "use_dora": "lora.dora",
    "init_lora_weights": "lora.initialisation",
    "num_train_epochs": "optimisation.epochs",
    "batch_size": "optimisation.questions_per_step",
    "per_device_train_batch_size": "optimisation.questions_per_step",
    "gradient_accumulation_steps": "optimisation.tokens_per_batch",
    "lr": "optimisation.learning_rate",
    "loraplus_lr_ratio": "optimisation.b_rate_ratio",
    "lr_scheduler_type": "optimisation.schedule",
    "warmup_ratio": "optimisation.warmup",
    "warmup_steps": "optimisation.warmup",
    "max_grad_norm": "optimisation.clip_norm",
    "eval_steps": "evaluation.every",
    "metric_for_best_model": "evaluation.metric",
    "early_stopping_patience": "evaluation.patience",
    "save_steps": "checkpoint.every",
    "save_total_limit": "checkpoint.keep",
}
"""The dotted keys of settings, by the names of transformers and PEFT for them."""

# The flags of the command line for the settings that have no default.
_FLAGS = {"model.source": "--model", "data.train": "--train"}
# How many wrong settings a message explains.
_EXPLAINED = 5
# Bytes; a larger file holds no settings.
_LARGEST = 2**20
# A file of questions has these keys (JSON), or a table's head with this column.
_QUESTIONS = re.compile(
    r'"(question|paragraphs)"\s*:|\A([\w ."-]+[,;\t])*\s*"?question"?\s*[,;\t\n]'
)


# What YAML 1.2's core schema does not read as text.
_OTHER_THAN_TEXT = {
    "null": r"null|Null|NULL|~|",
    "bool": r"true|True|TRUE|false|False|FALSE",
    "int": r"[-+]?[0-9]+",
    "float": r"[-+]?([0-9]+(\.[0-9]*)?|\.[0-9]+)([eE][-+]?[0-9]+)?|[-+]?\.inf|\.nan",
}


class _Dumper(yaml.SafeDumper):
    """Writes texts so that they are read as they were."""

    def represent_text(self, text: str) -> yaml.ScalarNode:
        """Quote YAML's other line breaks, and texts such as 1e3 that are else no text."""
        breaks = re.search(r"[\x85\u2028\u2029]", text)
        other = any(re.fullmatch(pattern, text) for pattern in _OTHER_THAN_TEXT.values())
        style = '"' if breaks or other else None
        return self.represent_scalar("tag:yaml.org,2002:str", text, style)


_Dumper.add_representer(str, _Dumper.represent_text)


class _Loader(yaml.SafeLoader):
    """YAML 1.2's core schema: 3e-4 is a number, `on` and `2024-01-01` are text."""

    yaml_implicit_resolvers: dict[str, Any] = {}  # noqa: RUF012 - PyYAML's way

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        """Raise if a key occurs twice; YAML would silently take the last value."""
        seen: list[Any] = []
        for key, _ in node.value:
            if key.value in seen:
                raise yaml.MarkedYAMLError(
                    problem=f"{key.value!r} occurs twice", problem_mark=key.start_mark
                )
            seen.append(key.value)
        return super().construct_mapping(node, deep)


for _kind, _pattern in _OTHER_THAN_TEXT.items():
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_kind}", re.compile(rf"({_pattern})$"), None)


def read_yaml(file: Path) -> dict[str, Any]:
    """Return the keys and values of a settings file. Raises `InputError` if it is none."""
    text = _read_text(file)
    try:
        values = yaml.load(text, _Loader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        where = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        problem = shortened(str(error.problem), 200)
        raise InputError(f"{file}{where} is not valid YAML: {problem}.") from None
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        raise InputError(f"{file} is not valid YAML: {in_a_line(error)}.") from None
    if not isinstance(values, dict | None):
        raise InputError(f"{file} must contain groups of settings (`lora:`, `model:`, ...).")
    return values or {}


def _read_text(file: Path) -> str:
    """Return the text of a settings file, unless it is something else."""
    try:
        size = file.stat().st_size
        data = file.read_bytes() if size <= _LARGEST else b""
    except FileNotFoundError:
        raise InputError(f"{file} does not exist; check the path.") from None
    except IsADirectoryError:
        raise InputError(
            f"{file} is a folder, not a settings file; a base model is given with --model."
        ) from None
    except OSError as error:
        raise InputError(f"The settings file {file} cannot be read ({error}).") from None
    if is_binary(data):
        raise InputError(
            f"{file} is a binary file, not settings; questions are given with --train and "
            "--dev, a base model with --model."
        )
    text = decode(data, str(file))
    if size > _LARGEST or _QUESTIONS.search(text):
        raise InputError(
            f"{file} holds no settings but data; questions are given with --train and --dev."
        )
    return text


def _read_override(text: str) -> dict[str, Any]:
    key, equals, value = text.partition("=")
    if not (key and equals):
        raise InputError(f"{quote(text)} is not a setting; write key=value, as in lora.rank=16.")
    return _nested(key, _read_value(key, value))


def _nested(key: str, value: Any) -> dict[str, Any]:
    group, dot, name = key.partition(".")
    return {group: {name: value}} if dot else {group: value}


def _read_value(key: str, text: str) -> Any:
    if key in _TEXT_KEYS and text != "null":
        # Read as YAML, a template would fail and a path might change.
        return text
    try:
        return yaml.load(text, _Loader)
    except (yaml.YAMLError, RecursionError, ValueError):
        return text


def _merge(base: dict[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in over.items():
        old = merged.get(key)
        if isinstance(old, dict) and isinstance(value, dict | None):
            # The group is None if all its lines are comments.
            merged[key] = old | (value or {})
        else:
            merged[key] = value
    return merged


def _explanations(errors: Sequence[ErrorDetails]) -> list[str]:
    more = [f"There are {len(errors) - _EXPLAINED:,} more problems."]
    return [*map(_explain, errors[:_EXPLAINED]), *(more if len(errors) > _EXPLAINED else [])]


def _explain(error: ErrorDetails) -> str:
    key = shortened(".".join(map(str, error["loc"])), 60)
    if error["type"] == "extra_forbidden":
        return f"There is no setting {key}{_hint(key)}."
    if error["type"] == "missing":
        flag = f"{_FLAGS[key]}, " if key in _FLAGS else ""
        return (
            f"The setting {key} is missing; give it with {flag}--set {key}=VALUE, or in the "
            "settings file."
        )
    given = shortened(repr(error["input"]), 60)
    if error["type"] == "model_type":
        names = ", ".join(_GROUPS[key].model_fields)
        return f"The setting {key} is {given} but must be a group ({names})."
    allowed = re.sub(r"^(Input|Tuple) should ", "must ", error["msg"])
    return f"The setting {key} is {given} but {shortened(allowed, 400)}."


def _hint(key: str) -> str:
    """Suggest the setting that other libraries call so, or a similar name; else list the names."""
    group, dot, rest = key.partition(".")
    if dot and group not in _GROUPS:
        group, dot = rest, ""
    name, beside = (rest, _GROUPS[group].model_fields) if dot else (group, RunSettings.model_fields)
    meant = (
        OTHER_NAMES.get(name)
        or _similar(name, {each: f"{group}.{each}" if dot else each for each in beside})
        or _similar(name, {known.rpartition(".")[2]: known for known in _TYPES})
    )
    if meant:
        return f" (did you mean {meant}?)"
    which, names = (f"settings of {group}", beside) if dot else ("groups", _GROUPS)
    return f"; the {which} are {', '.join(names)}"


def option_of(name: str) -> str | None:
    """Return the option that gives the setting of this name, here or in transformers and PEFT."""
    own = [key for key in _TYPES if key.rpartition(".")[2] == name]
    key = own[0] if len(own) == 1 else OTHER_NAMES.get(name)
    return key and _FLAGS.get(key, f"--set {key}=VALUE")


def _similar(name: str, keys: Mapping[str, str]) -> str | None:
    """Return the key with the most similar name, if one is similar."""
    nearest = difflib.get_close_matches(name, keys, n=1)
    return keys[nearest[0]] if nearest else None


def _leaves(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if prefix + key in _GROUPS:
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value
