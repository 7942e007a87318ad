"""The LoRA settings of a run."""

import math
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator
from pydantic_core import PydanticCustomError

# PEFT's files: these settings, and the adapter's weights.
ADAPTER_CONFIG = "adapter_config.json"
TENSORS = "adapter_model.safetensors"


def scaling(rank: int, alpha: float, rank_stabilised: bool) -> float:
    """Return s, the factor before BA: α/r (Hu et al., 2021) or α/√r (Kalajdzievski, 2023)."""
    return alpha / math.sqrt(rank) if rank_stabilised else alpha / rank


class LoraSettings(BaseModel):
    """Rank, scale and place of the low-rank updates.

    `target_modules` is one string or a list of strings. Each is

    - `all-linear`: every linear layer except the output head, as in PEFT;
    - `attention` or `mlp`: the linear layers of attention or of the MLP;
    - a regular expression for the last whole components of a layer's name: `c_attn`,
      `attn.c_proj`, `h.(0|1).mlp.c_fc`, `[qv]_proj`;
    - any of these followed by parts of a fused projection, each with its own A and B:
      `c_attn[q,v]`.

    `rank_pattern` and `alpha_pattern` give some of these layers another rank or α, by the same kind
    of regular expression. The first one that matches counts, for all parts of a layer.

    `dropout` acts only on the input of A. It is 0 by default, because all questions about a context
    would share one mask on its tokens (see `docs/lora.md`).
    """

    model_config = ConfigDict(
        frozen=True, strict=True, extra="forbid", use_attribute_docstrings=True
    )

    rank: int = Field(default=16, ge=1)
    """r, the inner dimension of BA."""
    alpha: float = Field(default=32.0, gt=0, allow_inf_nan=False)
    """α; the update is scaled by α/r."""
    rank_pattern: dict[str, Annotated[int, Field(ge=1)]] = {}
    """Another rank for layers by the end of their names, as in `{"[qv]_proj": 8, "mlp.*": 4}`."""
    alpha_pattern: dict[str, Annotated[float, Field(gt=0, allow_inf_nan=False)]] = {}
    """Another α for layers by the end of their names."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """Dropout on the input of A; all questions about a context share its mask."""
    rank_stabilised: bool = False
    """Whether to scale by α/√r instead of α/r."""
    activated: bool = False
    """Whether the update acts on questions and answers alone (aLoRA), not on contexts."""
    initialisation: Literal["random", "pissa"] = "random"
    """Start of A and B: A random and B 0, or (`pissa`) the largest singular directions of W."""
    start: str | None = None
    """Run or adapter to go on from; base, template and LoRA are its own if they are not given."""
    dora: bool = False
    """Whether to train the length of each row of W apart from its direction (DoRA)."""
    target_modules: tuple[str, ...] = Field(default=("all-linear",), min_length=1)
    """Layers to adapt: `all-linear`, `attention`, `mlp`, ends of names, `c_attn[q,v]`."""

    @model_validator(mode="after")
    def _one_variant(self) -> Self:
        variants = {
            "activated=true": self.activated,
            "dora=true": self.dora,
            "initialisation=pissa": self.initialisation == "pissa",
        }
        chosen = [name for name, is_chosen in variants.items() if is_chosen]
        if self.start is not None and self.initialisation == "pissa":
            chosen = ["start", "initialisation=pissa"]
        if len(chosen) > 1:
            raise PydanticCustomError(
                "variants", f"{' and '.join(chosen)} exclude each other; choose one of them"
            )
        return self

    @field_validator("target_modules", mode="before")
    @classmethod
    def _one_target_or_a_list(cls, value: Any) -> Any:
        if isinstance(value, str):
            return (value,)
        return tuple(value) if isinstance(value, list) else value
