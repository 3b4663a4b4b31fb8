# SPDX-License-Identifier: GPL-2.0-only
"""The architecture's rules, held by reading the sources: who imports whom, how long a module may be, and that
each says what it is.
"""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "pyhv"
MODULES = sorted(PACKAGE.rglob("*.py"))

LAYERS: list[set[str]] = [
    {"abi", "address", "errors", "state"},
    {"cpu", "clock"},
    {"mmu"},
    {"events", "grants", "xenstore", "sched"},
    {"domain"},
    {"hypercalls", "devices", "loader"},
    {"traps"},
    {"machine", "assemble"},
    {"observe", "guests", "snapshot"},
    {"images"},
    {"cli"},
]
"""From the lowest: a module imports from its own layer and from lower ones."""
LAYER_OF = {name: number for number, names in enumerate(LAYERS) for name in names}

ENGINES = {"unicorn", "capstone", "keystone"}
"""Only `pyhv.cpu` knows that these exist."""
MAX_LINES = 600


def name_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def is_for_typing(node: ast.stmt) -> bool:
    """`if TYPE_CHECKING:` - what is imported there is never loaded."""
    return isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)


def imports(tree: ast.AST) -> Iterator[str]:
    """Absolute names of all modules that are imported, at the top or inside functions."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"relative import in line {node.lineno}"
            assert node.module is not None
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif not (isinstance(node, ast.stmt) and is_for_typing(node)):
            yield from imports(node)


def layer(module: str) -> int | None:
    """The layer of `pyhv.x...`; None for `pyhv` itself and for what is not pyhv's."""
    parts = module.split(".")
    return LAYER_OF[parts[1]] if parts[0] == "pyhv" and len(parts) > 1 and parts[1] in LAYER_OF else None


def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), str(path))


def test_every_part_has_a_layer() -> None:
    parts = {path.relative_to(PACKAGE).with_suffix("").parts[0] for path in MODULES} - {
        "__init__",
        "__main__",
    }
    assert parts == set(LAYER_OF)


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_imports_only_from_own_or_lower_layers(path: Path) -> None:
    own = layer(name_of(path))
    if own is None:
        return
    upward = sorted(
        {found for found in imports(parsed(path)) if (other := layer(found)) is not None and other > own}
    )
    assert not upward


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_only_cpu_knows_the_emulator(path: Path) -> None:
    if name_of(path).startswith("pyhv.cpu"):
        return
    assert not {found.split(".")[0] for found in imports(parsed(path))} & ENGINES


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_a_module_is_short_and_says_what_it_is(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert len(text.splitlines()) < MAX_LINES
    assert text.startswith("# SPDX-License-Identifier: GPL-2.0-only\n")
    assert ast.get_docstring(parsed(path))


def test_the_package_needs_nothing_undeclared() -> None:
    """Whatever is imported is the standard library, pyhv, or a dependency that pyproject.toml names."""
    declared = {
        "unicorn", "capstone", "keystone", "numpy", "elftools", "lz4", "zstandard", "msgpack", "click",
        "rich",
    }  # fmt: skip
    used = {found.split(".")[0] for path in MODULES for found in imports(parsed(path))}
    assert used - set(sys.stdlib_module_names) - {"pyhv"} <= declared


def test_the_check_itself_sees_an_upward_import() -> None:
    tree = ast.parse(
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import pyhv.cli\ndef f():\n"
        "    from pyhv import machine\n"
    )
    found = set(imports(tree))
    assert "pyhv.machine" in found
    assert "pyhv.cli" not in found
    assert layer("pyhv.machine") == 7
