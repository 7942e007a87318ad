"""Model cards: of an adapter, of a sum of some, and of a model with an adapter merged into it."""

from collections.abc import Mapping
from typing import Any

from loraqa.adapter.evaluation import Evaluation
from loraqa.adapter.info import AdapterInfo
from loraqa.errors import counted
from loraqa.squad import Overlap

CARD = "README.md"


def model_card(
    info: AdapterInfo,
    *,
    before: Evaluation | None,
    after: Evaluation | None,
    strategy: str,
    steps: int,
    training_seconds: float,
    data: Mapping[str, Any],
    shared: Overlap | None,
    command: str,
    settings_yaml: str,
) -> str:
    """Return the model card of an adapter.

    Args:
        info: base model and prompts.
        before, after: scores without and with the adapter; None without dev data.
        strategy: name of the strategy whose answers were scored.
        steps: optimizer steps done.
        training_seconds: time spent on them.
        data: source, sha256 and number of questions of the training data.
        shared: what the dev data share with the training data; None without dev data.
        command: the command that made the adapter.
        settings_yaml: the settings of the run.
    """
    return _CARD.format(
        base=info.base,
        base_name=info.base.source,
        scores=_scores(before, after, strategy, shared),
        steps=counted(steps, "optimizer step"),
        minutes=training_seconds / 60,
        train=data["source"],
        questions=counted(data["questions"], "question"),
        sha256=data["sha256"],
        command=command,
        settings=settings_yaml.rstrip(),
    )


def merged_card(info: AdapterInfo) -> str:
    """Return the model card of a model with an adapter merged into it."""
    return _MERGED_CARD.format(
        base=info.base,
        base_name=info.base.source,
        dtype=info.base.dtype,
        template=info.template.replace("\n", "\n    "),
    )


def sum_card(info: AdapterInfo, weights: Mapping[str, float]) -> str:
    """Return the model card of a weighted sum of adapters, each called by its folder."""
    return _SUM_CARD.format(
        base=info.base,
        base_name=info.base.source,
        terms="\n".join(f"- {weight:g} times `{source}`" for source, weight in weights.items()),
    )


_ADAPTER_HEAD = """\
---
library_name: peft
base_model: {base_name}
pipeline_tag: question-answering
tags: [lora, loraqa, question-answering]
---
"""

_HOW_TO_USE = """\
Ask it with loraqa (`loraqa ask`, or `Reader.load` from Python); `loraqa.json` says how its prompts
are written. PEFT loads it too: `PeftModel.from_pretrained(base, FOLDER)`.
"""


_CARD = (
    _ADAPTER_HEAD
    + """
# A LoRA adapter that answers questions about a text

Base model: {base}.

{scores}

Trained for {steps} ({minutes:.1f} minutes) on the {questions} of
`{train}` (sha256 of the passages: `{sha256}`).

"""
    + _HOW_TO_USE
    + """
Made by

    {command}

with these settings:

```yaml
{settings}
```
"""
)


_SUM_CARD = (
    _ADAPTER_HEAD
    + """
# A weighted sum of LoRA adapters that answer questions about a text

Base model: {base}.

The update of each weight is the sum of

{terms}

The sum was not scored.

"""
    + _HOW_TO_USE
)


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


def _scores(
    before: Evaluation | None, after: Evaluation | None, strategy: str, shared: Overlap | None
) -> str:
    if after is None:
        return "Not scored, for want of dev data: these are the weights of the last step."
    rows = {"before training": before, f"these weights, of step {after.step}": after}
    return "\n".join(
        [
            f"Answers by `{strategy}` to {after.total:,} dev questions:",
            "",
            "| | exact match | F1 |",
            "|---|---|---|",
            *(f"| {name} | {e.exact_match:.2f} | {e.f1:.2f} |" for name, e in rows.items() if e),
            *(["", f"**{shared}: the scores are higher than on new texts.**"] if shared else []),
        ]
    )
