"""The garbage collector is disabled exactly as long as requested."""

import gc

import pytest

from loraqa.garbage import importing, no_garbage


@no_garbage()
def enabled_within() -> bool:
    return gc.isenabled()


def test_the_collector_is_disabled_within_and_enabled_afterwards() -> None:
    assert gc.isenabled()
    assert not enabled_within()
    assert gc.isenabled()


def test_an_error_enables_the_collector_again() -> None:
    with pytest.raises(ValueError, match="bad"), no_garbage():
        raise ValueError("bad")
    assert gc.isenabled()


def test_two_overlapping_uses_leave_the_collector_enabled() -> None:
    first, second = no_garbage(), no_garbage()
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    second.__exit__(None, None, None)
    assert gc.isenabled()


def test_a_disabled_collector_stays_disabled() -> None:
    gc.disable()
    try:
        assert not enabled_within()
        assert not gc.isenabled()
    finally:
        gc.enable()


def test_imported_objects_are_excluded_from_later_collections() -> None:
    before = gc.get_freeze_count()
    try:
        with importing():
            imported = [[] for _ in range(1000)]
        assert gc.isenabled()
        assert gc.get_freeze_count() >= before + len(imported)
    finally:
        gc.unfreeze()
