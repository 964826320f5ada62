"""Lower rooms never import higher ones, and only the rooms that define networks import Flax."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1] / "prance_jax"
# From the bottom up; names on one line may import each other.
ORDER = (
    ("errors", "losses", "inputs"),
    ("mesh",),
    ("exported",),
    ("space",),
    ("tokens",),
    ("spec",),
    ("complexity",),
    ("models",),
    ("channels",),
    ("selector", "data"),
    ("config", "config_field", "config_io", "config_stages", "config_text"),
    ("evaluation",),
    ("adaptive",),
    ("training",),
    ("inference",),
    ("report",),
    ("show",),
    ("commands",),
    ("cli", "__main__"),
)
LEVEL = {room: level for level, rooms in enumerate(ORDER) for room in rooms}
FILES = [path for path in sorted(ROOT.rglob("*.py")) if path != ROOT / "__init__.py"]


def room(path: Path) -> str:
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


def imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module == "prance_jax":
            found |= {f"prance_jax.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add(node.module)
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_file_imports_a_higher_room(path):
    for name in imports(path):
        if name.startswith("prance_jax."):
            assert LEVEL[name.split(".")[1]] <= LEVEL[room(path)], f"{path} imports {name}"


def test_only_networks_import_flax():
    users = {room(path) for path in FILES if any(name.split(".")[0] == "flax" for name in imports(path))}
    assert users <= {"models", "channels", "selector"}
