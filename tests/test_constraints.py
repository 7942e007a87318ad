"""The pins that `make setup` installs: exact, free of local builds, within the declared ranges."""

import tomllib
from pathlib import Path

from packaging.requirements import Requirement
from packaging.specifiers import Specifier
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[1]
LINES = (ROOT / "constraints.txt").read_text().splitlines()
PINS = {
    canonicalize_name(pin.name): pin
    for pin in (Requirement(line) for line in LINES if not line.startswith("#"))
}
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def declared() -> list[Requirement]:
    extras = PROJECT["optional-dependencies"].values()
    return [Requirement(text) for texts in (PROJECT["dependencies"], *extras) for text in texts]


def exact(pin: Requirement) -> Specifier:
    (specifier,) = pin.specifier
    assert specifier.operator == "==", pin
    return specifier


def test_every_pin_is_exact_and_from_any_index() -> None:
    for pin in PINS.values():
        assert "+" not in exact(pin).version
        assert pin.url is None


def test_every_dependency_is_pinned_within_its_range() -> None:
    for requirement in declared():
        pin = PINS[canonicalize_name(requirement.name)]
        assert exact(pin).version in requirement.specifier, requirement
