"""Garbage is left lying only for as long as was asked for."""

import gc

import pytest

from loraqa.garbage import importing, no_garbage


@no_garbage()
def enabled_within() -> bool:
    return gc.isenabled()


def test_no_garbage_is_collected_within_and_it_is_again_afterwards() -> None:
    assert gc.isenabled()
    assert not enabled_within()
    assert gc.isenabled()


def test_an_error_leaves_the_collector_running() -> None:
    with pytest.raises(ValueError, match="bad"), no_garbage():
        raise ValueError("bad")
    assert gc.isenabled()


def test_the_first_of_two_at_once_turns_it_on_again() -> None:
    first, second = no_garbage(), no_garbage()
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    second.__exit__(None, None, None)
    assert gc.isenabled()


def test_a_collector_that_was_off_stays_off() -> None:
    gc.disable()
    try:
        assert not enabled_within()
        assert not gc.isenabled()
    finally:
        gc.enable()


def test_what_is_imported_is_not_looked_at_again() -> None:
    before = gc.get_freeze_count()
    try:
        with importing():
            imported = [[] for _ in range(1000)]
        assert gc.isenabled()
        assert gc.get_freeze_count() >= before + len(imported)
    finally:
        gc.unfreeze()
