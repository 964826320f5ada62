"""Imports go one way, files and folders stay small, and only folders that define networks import Flax."""

import ast
import collections
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1] / "prance_jax"
# From the bottom up. A folder imports only folders above it in this list, and itself.
ORDER = (
    "core",
    "tokens",
    "tokens/methods",
    "spec",
    "data",
    "data/digits",
    "data/images",
    "models",
    "baselines",
    "selector/rl",
    "selector",
    "cascade",
    "zoo/formats",
    "zoo/families",
    "zoo",
    "evaluation",
    "adaptive",
    "config",
    "training",
    "training/stages",
    "experiments",
    "experiments/cascade",
    "serving",
    "results",
    "benchmarks",
    "benchmarks/profiles",
    "benchmarks/accelerator",
    "visualize",
    "visualize/cascade",
    "commands",
    ".",
)
# `data/load` chooses among the data sources of the folders below it.
EXCEPTIONS = {"data/load.py": ("data/digits", "data/images")}
FLAX = {"models", "baselines", "selector", "selector/rl"}
FILES = [path for path in sorted(ROOT.rglob("*.py")) if path != ROOT / "__init__.py"]
MODULES = {".".join(path.relative_to(ROOT.parent).with_suffix("").parts): path for path in FILES}


def name(path: Path) -> str:
    return str(path.relative_to(ROOT))


def folder(path: Path) -> str:
    return str(path.parent.relative_to(ROOT))


def imports(path: Path) -> set[str]:
    """Modules that a file imports anywhere, type-only and lazy imports included."""
    modules = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            modules |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            members = {f"{node.module}.{alias.name}" for alias in node.names}
            modules |= {member if member in MODULES else node.module for member in members}
    return modules


IMPORTS = {path: {MODULES[module] for module in imports(path) if module in MODULES} for path in FILES}


@pytest.mark.parametrize("path", FILES, ids=name)
def test_no_file_imports_a_higher_folder(path):
    for imported in IMPORTS[path]:
        if folder(imported) in EXCEPTIONS.get(name(path), ()):
            continue
        assert ORDER.index(folder(imported)) <= ORDER.index(folder(path)), f"{path} imports {imported}"


def test_no_files_import_each_other():
    """Depth-first search: a file that is met again on the way down closes a circle."""
    finished = set()

    def visit(path: Path, way: tuple[Path, ...]) -> None:
        assert path not in way, " -> ".join(map(name, (*way[way.index(path) :], path)))
        if path in finished:
            return
        for imported in sorted(IMPORTS[path]):
            visit(imported, (*way, path))
        finished.add(path)

    for path in FILES:
        visit(path, ())


def test_only_networks_import_flax():
    users = {folder(path) for path in FILES if any(used.split(".")[0] == "flax" for used in imports(path))}
    assert users <= FLAX


def test_an_exported_program_needs_no_model_code():
    """`serving/exported.py` runs where only JAX and NumPy are installed."""
    assert {folder(path) for path in IMPORTS[ROOT / "serving/exported.py"]} <= {"core"}


def without_docstrings(path: Path) -> str:
    """The source without its docstrings."""
    lines = path.read_text().splitlines(keepends=True)
    for node in ast.walk(ast.parse("".join(lines))):
        if (
            isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef))
            and ast.get_docstring(node) is not None
        ):
            text = node.body[0]
            lines[text.lineno - 1 : text.end_lineno] = [""] * (text.end_lineno - text.lineno + 1)
    return "".join(lines)


@pytest.mark.parametrize("path", FILES, ids=name)
def test_files_are_small(path):
    assert path.stat().st_size <= 12 * 1024
    assert len(without_docstrings(path).encode()) <= 10 * 1024


def test_folders_are_small():
    counts = collections.Counter(folder(path) for path in FILES if path.name != "__init__.py")
    assert max(counts.values()) <= 9, counts.most_common(3)
