"""docs/settings.md lists every setting with its default and its docstring.

To write it again: python -m tests.train.test_settings_reference > docs/settings.md
"""

from pathlib import Path

import yaml

from loraqa.train.settings import RunSettings

DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "settings.md"

INTRODUCTION = """\
# Settings of a run

A run is chosen by a YAML file, by flags, or by both; flags win, and the last `--set` wins.

    loraqa train settings.yaml --model gpt2 --train rajpurkar/squad:train \\
        --dev rajpurkar/squad:validation --out runs/squad --set lora.rank=8

A file holds the groups below; what it leaves out has its default. An unknown key is refused, with
the nearest one that exists. The run directory keeps the whole of it in `settings.yaml`, which is
itself a settings file. Its paths are full, so that a run goes on from any working directory; where
the base or the data have moved, `--model`, `--train` and `--dev` say so on resuming.

`seed` (default 0) stands outside the groups: it draws the adapter, the order of the data and the
dev sample.
"""


def reference() -> str:
    groups = ((n, f.annotation) for n, f in RunSettings.model_fields.items() if n != "seed")
    return INTRODUCTION + "".join(_group(name, kind) for name, kind in groups)


def _group(name: str, kind: type) -> str:
    rows = []
    for key, field in kind.model_fields.items():
        default = "required" if field.is_required() else f"`{_yaml(field.get_default())}`"
        rows.append(f"| `{name}.{key}` | {default} | {field.description} |\n")
    summary = (kind.__doc__ or "").splitlines()[0]
    return f"\n## {name}\n\n{summary}\n\n| key | default | what |\n|---|---|---|\n{''.join(rows)}"


def _yaml(value: object) -> str:
    plain = list(value) if isinstance(value, tuple) else value
    text = yaml.safe_dump(plain, default_flow_style=True, width=1000)
    return text.removesuffix("...\n").strip().strip("'")


def test_the_reference_is_up_to_date() -> None:
    assert DOCUMENT.read_text() == reference()


if __name__ == "__main__":
    print(reference(), end="")
