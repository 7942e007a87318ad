"""The rules of the code: who may import whom, what stays light, what is never done."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from loraqa.speed import OF_COMMANDS, OF_MODELS, OF_PREPARATION

SOURCE = Path(__file__).resolve().parents[1] / "src" / "loraqa"
# From the foundation up; each room may import the rooms listed before it.
ROOMS = [
    "squad",
    "analysis",
    "lora",
    "prompt",
    "model",
    "distributed",
    "adapter",
    "documents",
    "train",
    "answer",
    "batch",
    "report",
    "serve",
    "speed",
    "finetuning",
    "sweep",
    "cluster",
    "demo",
    "cli",
]
# The plain algorithm: these work without any acceleration.
CORE = ["squad", "lora", "prompt", "model", "adapter", "train", "answer"]
# Rooms that do not import each other, whatever their order.
SIBLINGS = {"train": "answer", "answer": "train"}
FOR_ALL = ["begun", "cache", "errors", "files", "garbage"]
# Beyond the order: these read answers with the recipe of `reader.py`, and commands run all recipes.
EXCEPTIONS = {
    "finetuning": {"reader"},
    "demo": {"reader"},
    "speed": {"notices"},
    "cli": {"analyze", "costs", "notices", "reader", "reader_options"},
    "batch": {"reader_options"},
    "cluster": {"reader"},
}
# Accelerations that are imported by name. Graphs replay what Triton kernels compute, branches alone
# attend by products, their trunks are kept, and the command line starts the preparing process
# before it imports PyTorch.
TIED = {
    "loraqa.speed.cpu.products": {"speed/branches.py"},
    "loraqa.speed.branches": {"speed/kept.py"},
    "loraqa.speed.gpu.trees": {"speed/gpu/graphs.py"},
    "loraqa.speed.start.process": {"cli/train.py"},
}
HEAVY = [
    *("torch", "transformers", "tokenizers", "datasets", "pyarrow", "pandas", "matplotlib"),
    *("sklearn", "scipy"),
]
UNSAFE_MODULES = {"pickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}
UNSAFE_CALLS = {"torch.load", "torch.save"}
UNSAFE_OPTIONS = {"trust_remote_code", "allow_pickle"}


def imported_modules(tree: ast.AST) -> Iterator[str]:
    """Every module that a file imports, wherever it does, `from a import b` counted as `a.b`."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def rooms_imported(tree: ast.AST) -> set[str]:
    """The rooms and top modules of loraqa that a file imports."""
    names = [name.split(".") for name in imported_modules(tree)]
    return {name[1] for name in names if name[0] == "loraqa" and name[1:]} - {"__version__"}


def allowed_in(room: str) -> set[str]:
    below = {*FOR_ALL, *ROOMS[: ROOMS.index(room) + 1]} - {SIBLINGS.get(room)}
    return below | EXCEPTIONS.get(room, set())


def unsafe_uses(tree: ast.AST) -> list[str]:
    """Pickle in any of its forms, and options that let a file or model bring code."""
    modules = [
        name for name in imported_modules(tree) if UNSAFE_MODULES.intersection(name.split("."))
    ]
    calls = [ast.unparse(node) for node in ast.walk(tree) if isinstance(node, ast.Attribute)]
    options = [
        ast.unparse(node)
        for node in ast.walk(tree)
        if isinstance(node, ast.keyword) and node.arg in UNSAFE_OPTIONS
    ]
    return [
        *modules,
        *UNSAFE_CALLS.intersection(calls),
        *(option for option in options if not option.endswith("=False")),
    ]


def prints(tree: ast.AST) -> bool:
    return any(isinstance(node, ast.Name) and node.id == "print" for node in ast.walk(tree))


def is_command(path: Path) -> bool:
    return 'if __name__ == "__main__"' in path.read_text(encoding="utf-8")


def parse(path: Path) -> ast.AST:
    return ast.parse(path.read_text(encoding="utf-8"), filename=str(path))


def files_of(room: str) -> list[Path]:
    return sorted((SOURCE / room).rglob("*.py"))


def loaded_by(statement: str) -> set[str]:
    """The heavy libraries in memory once a fresh interpreter has run `statement`."""
    code = f"import sys; {statement}; print(*(name for name in {HEAVY} if name in sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


def test_every_folder_is_a_room() -> None:
    folders = {path.parent.name for path in SOURCE.glob("*/*.py")}
    assert folders <= set(ROOMS)
    assert "squad" in folders


@pytest.mark.parametrize("room", ROOMS)
def test_room_imports_only_from_rooms_below_it(room: str) -> None:
    wrong = {
        str(path.relative_to(SOURCE)): outside
        for path in files_of(room)
        if (outside := rooms_imported(parse(path)) - allowed_in(room))
    }
    assert wrong == {}


@pytest.mark.parametrize(("room", "sibling"), SIBLINGS.items())
def test_training_and_answering_do_not_import_each_other(room: str, sibling: str) -> None:
    importing = [path.name for path in files_of(room) if sibling in rooms_imported(parse(path))]
    assert files_of(room)
    assert importing == []


@pytest.mark.parametrize("room", CORE)
def test_the_core_never_imports_an_acceleration(room: str) -> None:
    importing = [p.name for p in files_of(room) if "speed" in rooms_imported(parse(p))]
    assert importing == []


@pytest.mark.parametrize(
    "module", [*OF_MODELS.values(), *OF_PREPARATION.values(), *OF_COMMANDS.values()]
)
def test_deleting_an_acceleration_is_deleting_its_file_and_its_line(module: str) -> None:
    file = SOURCE.parent / f"{module.replace('.', '/')}.py"
    assert file.exists()
    importing = {
        path.relative_to(SOURCE).as_posix()
        for path in SOURCE.rglob("*.py")
        if any(f"{name}.".startswith(f"{module}.") for name in imported_modules(parse(path)))
    }
    assert importing - {file.relative_to(SOURCE).as_posix()} == TIED.get(module, set())


def test_guards_do_not_depend_on_assertions() -> None:
    """`python -O` removes assertions."""
    asserting = [
        path.name
        for path in SOURCE.rglob("*.py")
        if any(isinstance(node, ast.Assert) for node in ast.walk(parse(path)))
    ]
    assert asserting == []


def test_lora_knows_nothing_of_questions() -> None:
    for path in files_of("lora"):
        assert "squad" not in rooms_imported(parse(path))


def test_squad_knows_nothing_of_torch() -> None:
    for path in files_of("squad"):
        names = {name.split(".")[0] for name in imported_modules(parse(path))}
        assert not names & {"torch", "transformers", "tokenizers", "safetensors", "peft"}


@pytest.mark.parametrize(
    "module",
    [
        "loraqa",
        "loraqa.squad",
        "loraqa.report",
        "loraqa.cli",
        "loraqa.train.run",
        "loraqa.adapter.find",
        "loraqa.answer.strategies",
    ],
)
def test_importing_loads_nothing_heavy(module: str) -> None:
    assert loaded_by(f"import {module}") == set()


def test_a_readers_options_do_without_pytorch() -> None:
    assert "torch" not in loaded_by("import loraqa.reader_options")


def test_reader_and_finetune_are_imported_from_the_package() -> None:
    code = (
        "import sys, loraqa\n"
        "from loraqa import Reader, finetune, load_readers\n"
        "assert finetune is loraqa.finetune is sys.modules['loraqa.finetuning'].finetune\n"
        "assert Reader is sys.modules['loraqa.reader'].Reader\n"
        "assert load_readers is sys.modules['loraqa.reader'].load_readers\n"
        "assert {'Reader', 'finetune', 'load_readers'} <= {*dir(loraqa)}\n"
        "assert not hasattr(loraqa, 'nothing')\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_nothing_depends_on_what_python_o_removes() -> None:
    """`python -O` removes assertions and whatever stands under `__debug__`."""
    wrong = [
        str(path.relative_to(SOURCE))
        for path in SOURCE.rglob("*.py")
        for node in ast.walk(parse(path))
        if isinstance(node, ast.Assert) or (isinstance(node, ast.Name) and node.id == "__debug__")
    ]
    assert wrong == []


def test_no_file_unpickles_or_runs_a_models_code() -> None:
    wrong = {
        str(path.relative_to(SOURCE)): uses
        for path in SOURCE.rglob("*.py")
        if (uses := unsafe_uses(parse(path)))
    }
    assert wrong == {}


def test_only_the_command_line_prints() -> None:
    library = [path for room in ROOMS for path in files_of(room) if not is_command(path)]
    assert [path.name for path in library if prints(parse(path))] == []


def test_checks_see_what_they_look_for() -> None:
    code = ast.parse(
        "def f():\n"
        "    from loraqa.cli import main\n"
        "    from loraqa import demo, __version__\n"
        "    import loraqa.squad.read\n"
        "    import pickle\n"
        "    torch.load(path); load(path, trust_remote_code=True); np.save(x, allow_pickle=False)\n"
    )
    assert rooms_imported(code) == {"cli", "demo", "squad"}
    assert unsafe_uses(code) == ["pickle", "torch.load", "trust_remote_code=True"]
    assert prints(ast.parse("print('x')"))
    assert not prints(ast.parse("'print'"))
    assert loaded_by("import tokenizers") == {"tokenizers"}
    assert allowed_in("lora") == {*FOR_ALL, "squad", "analysis", "lora"}
