"""The trees and prompts of the model room's tests."""

from tests.model.conftest import encoder, prompts, trees

__all__ = ["encoder", "prompts", "trees"]
