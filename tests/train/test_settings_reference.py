"""docs/settings.md lists every setting with its default and its docstring.

To write it again: python -m tests.train.test_settings_reference > docs/settings.md
"""

from pathlib import Path

import yaml

from loraqa.train.settings import OTHER_NAMES, RunSettings

DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "settings.md"

INTRODUCTION = """\
# Settings of a run

Settings come from a YAML file, from command-line options, or from both. Options override the file,
and a later `--set` overrides an earlier one.

    loraqa train settings.yaml --model gpt2 --train rajpurkar/squad:train \\
        --dev rajpurkar/squad:validation --out runs/squad --set lora.rank=8

With `--dry-run` the command shows [what the training costs](costs.md), and writes nothing. The last
line of a training says the scores before and after it; `--json` prints them with steps and seconds.
Which settings are best is found by [a sweep](sweep.md).

A file contains the groups below; missing keys have their defaults. An unknown key is an error, and
the message suggests a known one. The run directory keeps all settings in `settings.yaml`,
which is itself a settings file. Its paths are absolute, so that a run can be resumed from any
working directory; if the base model or the data have moved, give the new places with `--model`,
`--train` and `--dev`.

`seed` (default 0) belongs to no group. It is the random seed for the initial adapter, the order of
the data, and the sample of dev questions.
"""

OTHER_LIBRARIES = """
## Names of other libraries

What other libraries, such as transformers and PEFT, call some of these settings. A message about an
unknown key uses this table, too.

| key | elsewhere |
|---|---|
"""


def reference() -> str:
    groups = ((n, f.annotation) for n, f in RunSettings.model_fields.items() if n != "seed")
    return INTRODUCTION + "".join(_group(name, kind) for name, kind in groups) + _other_names()


def _group(name: str, kind: type) -> str:
    rows = []
    for key, field in kind.model_fields.items():
        default = "required" if field.is_required() else f"`{_yaml(field.get_default())}`"
        rows.append(f"| `{name}.{key}` | {default} | {field.description} |\n")
    summary = (kind.__doc__ or "").splitlines()[0]
    return f"\n## {name}\n\n{summary}\n\n| key | default | what |\n|---|---|---|\n{''.join(rows)}"


def _other_names() -> str:
    by_key: dict[str, list[str]] = {}
    for name, key in OTHER_NAMES.items():
        by_key.setdefault(key, []).append(f"`{name}`")
    rows = (f"| `{key}` | {', '.join(names)} |\n" for key, names in by_key.items())
    return f"{OTHER_LIBRARIES}{''.join(rows)}"


def _yaml(value: object) -> str:
    plain = list(value) if isinstance(value, tuple) else value
    text = yaml.safe_dump(plain, default_flow_style=True, width=1000)
    return text.removesuffix("...\n").strip().strip("'")


def test_the_reference_is_up_to_date() -> None:
    assert DOCUMENT.read_text() == reference()


if __name__ == "__main__":
    print(reference(), end="")
