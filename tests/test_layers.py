"""The rooms know only what lies below them, and what is heavy or optional is imported where it is used."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import cover

SOURCE = Path(cover.__file__).parent
MODULES = sorted(
    path.relative_to(SOURCE) for path in SOURCE.rglob("*.py") if path.name != "__init__.py" or path.parent != SOURCE
)
# Lowest first; rooms of one line stand side by side.
LAYERS = (
    ("errors", "containers", "safe_text"),
    ("yaml_files", "hub"),
    ("console", "config", "machine", "streams"),
    ("hardware", "processes", "locks"),
    ("media",),
    ("datasets",),
    ("transforms",),
    ("model",),
    ("distributed",),
    ("mixture",),
    ("evaluation",),
    ("training",),
    ("planning",),
    ("inference",),
    ("serve",),
    ("synthetic",),
    ("experiments",),
    ("api",),
    ("doctor",),
    ("cli",),
    ("__main__",),
)
HEIGHT = {room: height for height, rooms in enumerate(LAYERS) for room in rooms}
OPTIONAL = {
    "matplotlib",
    "transformers",
    "ray",
    "fastapi",
    "uvicorn",
    "onnx",
    "onnxscript",
    "onnxruntime",
    "gradio",
    "torchcodec",
}
OPTIONAL |= {"tokenizers", "prometheus_client", "tensorboard", "wandb", "trackio", "shtab"}


def room_of(module: Path) -> str:
    return module.parts[0].removesuffix(".py")


def imports(module: Path, everywhere: bool) -> Iterator[str]:
    """Dotted names a module imports; `everywhere` counts those inside functions too. Types-only imports cost nothing at
    run time.
    """
    package = ["cover", *module.parts[:-1]]
    pending: list[ast.AST] = [ast.parse((SOURCE / module).read_text(encoding="utf-8"))]
    while pending:
        node = pending.pop()
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(package[: len(package) - node.level + 1]) if node.level else ""
            origin = ".".join(part for part in (base, node.module) if part)
            yield from (f"{origin}.{alias.name}" for alias in node.names)
        elif everywhere or not (
            isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda) or is_for_types_only(node)
        ):
            pending.extend(ast.iter_child_nodes(node))


def is_for_types_only(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and ast.unparse(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING")


@pytest.mark.parametrize("module", MODULES, ids=str)
def test_imports_point_down(module: Path) -> None:
    room = room_of(module)
    assert room in HEIGHT, f"{module}: the room {room} has no place in the order of the layers"
    for name in imports(module, everywhere=True):
        if not name.startswith("cover."):
            continue
        other = name.split(".")[1]
        assert other == room or other not in HEIGHT or HEIGHT[other] < HEIGHT[room], (
            f"{module} imports {name}, which lies no lower"
        )


@pytest.mark.parametrize("module", [module for module in MODULES if room_of(module) == "model"], ids=str)
def test_the_model_needs_nothing_but_torch(module: Path) -> None:
    for name in imports(module, everywhere=False):
        top = name.split(".")[0]
        own = name.startswith(("cover.model.", "cover.errors.", "cover.hub."))
        assert own or top == "torch" or top in sys.stdlib_module_names, f"{module} imports {name}"


@pytest.mark.parametrize("module", MODULES, ids=str)
def test_optional_packages_are_imported_where_they_are_used(module: Path) -> None:
    for name in imports(module, everywhere=False):
        assert name.split(".")[0] not in OPTIONAL, f"{module} imports {name} at module level"


def test_the_command_line_starts_without_torch() -> None:
    code = "import sys, cover.cli; print(sorted({'torch', 'transformers', 'matplotlib'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.strip()) == (0, "[]"), done.stderr
