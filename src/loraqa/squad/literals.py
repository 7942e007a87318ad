"""Parse answers that a table holds as text: JSON, or Python literals as pandas prints them."""

import ast
import io
import json
import re
import tokenize
from itertools import pairwise
from typing import Any

# Objects, lists of texts or objects, and arrays; other brackets, as in "[sic]", are text.
_ANSWERS = re.compile(
    r"""\s*(\{\s*(["']|\}\s*\Z)|\[\s*(["'{]|\]\s*\Z|np\.|array\(|(None|null|nan)\b)|array\()"""
)
_NUMPY = ("array", "int64", "int32", "float64", "float32", "str_")
_OFFSETS = re.compile(r"\s*(\[|array\()")


def parse_answers(cell: str, context: str) -> Any:
    """Return the answers in a cell.

    A cell that holds no object, list or array is the text of an answer itself, and so is one that
    stands in the context.

    Raises `ValueError` if the cell starts like one of these, but cannot be parsed.
    """
    return _parse(cell) if _ANSWERS.match(cell) and cell not in context else cell


def parse_offsets(cell: str) -> Any:
    """Return the offsets in a cell like `parse_answers`."""
    return _parse(cell) if _OFFSETS.match(cell) else cell


def _parse(cell: str) -> Any:
    """Parse JSON, or Python literals as pandas prints them, with or without arrays."""
    try:
        return json.loads(cell)
    except (ValueError, RecursionError):
        pass
    literal = cell.strip()
    try:
        # An array in a cell of its own is printed without commas.
        literal = _with_commas(literal) if literal.startswith("[") else literal
        tree = ast.parse(literal, mode="eval")
        return ast.literal_eval(_Arrays().visit(tree))
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError, tokenize.TokenError):
        raise ValueError("the answers are neither JSON nor Python literals") from None


def _with_commas(literal: str) -> str:
    """Put commas between the items of arrays, which NumPy prints as `['a' 'b']`."""
    tokens = list(tokenize.generate_tokens(io.StringIO(literal).readline))
    items = {tokenize.STRING, tokenize.NUMBER}
    parts = [tokens[0].string]
    for before, token in pairwise(token for token in tokens if token.type != tokenize.NL):
        if before.type in items and token.type in items:
            parts.append(",")
        parts.append(token.string)
    return "".join(parts)


class _Arrays(ast.NodeTransformer):
    """Replaces `array([1, 2], dtype=int32)` by its list, `np.int64(1)` by 1, `nan` by None."""

    def visit_Call(self, node: ast.Call) -> ast.AST:
        called = node.func
        name = called.attr if isinstance(called, ast.Attribute) else getattr(called, "id", "")
        if name in _NUMPY and len(node.args) == 1:
            argument: ast.AST = self.visit(node.args[0])
            return argument
        return node

    def visit_Name(self, node: ast.Name) -> ast.AST:
        return ast.Constant(None) if node.id in ("nan", "null") else node
