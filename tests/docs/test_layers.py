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
    {"abi", "address", "cache", "errors", "frozen", "lane", "shared_page", "state", "version"},
    {"net", "shares", "storage", "volumes"},
    {"cpu", "clock", "paced"},
    {"mmu"},
    {"events", "grants", "xenstore", "sched", "board"},
    {"domain"},
    {"hypercalls", "devices", "loader"},
    {"traps"},
    {"resident"},
    {"outside"},
    {"until", "pcpu"},
    {"services", "undertaker"},
    {"domain_builder"},
    {"debugger", "plugging"},
    {"machine"},
    {"observe", "guests", "snapshot", "replay"},
    {"images"},
    {"gdb"},
    {"api"},
    {"cli", "testing"},
]
"""From the lowest: a module imports from its own layer and from lower ones."""
LAYER_OF = {name: number for number, names in enumerate(LAYERS) for name in names}

FOR_THE_COMMAND_LINE = {
    "api", "cli", "errors", "frozen", "version",
    "until",  # policies are combined and given to whoever runs
    "observe",  # digests, traces and tables of a machine's numbers
    "images", "guests", "loader",  # what there is to boot
    "net",  # how network devices are named; captures
    "sched", "cpu",  # names of schedulers; what `pyhv doctor` examines
    "storage",  # how a disk is named, and what is done with images
}  # fmt: skip
"""What `cli/` knows besides `import pyhv`: machines, guests and snapshots are the facade's affair."""
NO_FACADE = {"pyhv.cli.inspect": {"snapshot"}}
"""It looks whether a file is a snapshot before anything else is imported for reading it."""

ENGINES = {"unicorn", "capstone", "keystone"}
"""Only `pyhv.cpu` knows that these exist."""
MAX_LINES = 600


def name_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(tree: ast.AST) -> Iterator[str]:
    """Absolute names of all modules that are imported: at the top, inside functions, or for typing alone."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"relative import in line {node.lineno}"
            assert node.module is not None
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        else:
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


@pytest.mark.parametrize("path", sorted(PACKAGE.glob("cli/*.py")), ids=name_of)
def test_the_command_line_is_written_on_the_facade(path: Path) -> None:
    parts = {found.split(".")[1] for found in imports(parsed(path)) if layer(found) is not None}
    assert parts - FOR_THE_COMMAND_LINE == NO_FACADE.get(name_of(path), set())


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_only_cpu_knows_the_emulator(path: Path) -> None:
    if name_of(path).startswith("pyhv.cpu"):
        return
    assert not {found.split(".")[0] for found in imports(parsed(path))} & ENGINES


DOORS = {"pyhv.cpu.ram", "pyhv.mmu.physical"}
"""Who stores into the machine's memory through `Ram.writable`: each notes what was written."""
BARE_ENGINES = {"pyhv.cpu.selftest", "pyhv.cpu.trial"}
"""And what runs code of its own on a RAM of its own (`pyhv.cpu.tuning` does too)."""
PUT_BACK = {"pyhv.cpu.screen"}
"""And what changes bytes while the emulator translates them, and has put them back before anybody runs."""
OWN_STORES = {"store_u64", "store_u32", "store_row", "store_words"}
OWN_FRAMES = {"pyhv.cpu.ram", "pyhv.mmu.frames", "pyhv.mmu.paging", "pyhv.board"}
"""Who writes frames that no guest can write or execute, so that no translated code can be in them."""


def attributes(tree: ast.AST) -> set[str]:
    return {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_memory_is_written_through_its_doors(path: Path) -> None:
    """Its other views are for reading (`tests/unit/test_ram.py`), so that a store needs one of these."""
    name, used = name_of(path), attributes(parsed(path))
    if name not in DOORS | BARE_ENGINES | PUT_BACK and not name.startswith("pyhv.cpu.tuning."):
        assert "writable" not in used
    if name not in OWN_FRAMES:
        assert not used & OWN_STORES


def test_the_doors_are_where_the_test_believes() -> None:
    by_name = {name_of(path): attributes(parsed(path)) for path in MODULES}
    assert all("writable" in by_name[name] for name in DOORS | BARE_ENGINES | PUT_BACK)
    assert all(by_name[name] & OWN_STORES for name in OWN_FRAMES - {"pyhv.cpu.ram"})


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_a_module_is_short_and_says_what_it_is(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert len(text.splitlines()) < MAX_LINES
    assert text.startswith("# SPDX-License-Identifier: GPL-2.0-only\n")
    assert ast.get_docstring(parsed(path))


@pytest.mark.parametrize("path", sorted((ROOT / "tests").rglob("*.py")), ids=lambda path: path.name)
def test_a_test_module_is_short_too(path: Path) -> None:
    assert len(path.read_text(encoding="utf-8").splitlines()) < MAX_LINES


def test_the_package_needs_nothing_undeclared() -> None:
    """Whatever is imported is the standard library, pyhv, or a dependency that pyproject.toml names."""
    declared = {
        "unicorn", "capstone", "keystone", "numpy", "elftools", "lz4", "zstandard", "msgpack", "click",
        "rich",
        "coverage",  # an extra, imported late
        "pytest",  # the extra `test`: whoever imports the plugin is pytest
    }  # fmt: skip
    used = {found.split(".")[0] for path in MODULES for found in imports(parsed(path))}
    assert used - set(sys.stdlib_module_names) - {"pyhv"} <= declared


def graph() -> dict[str, set[str]]:
    """Who imports whom, within the package."""
    names = {name_of(path): path for path in MODULES}
    return {
        name: {found for found in imports(parsed(path)) if found in names} - {name}
        for name, path in names.items()
    }


def circles(imported: dict[str, set[str]]) -> list[list[str]]:
    """Modules that import each other, directly or through others, as sorted groups."""
    reachable: dict[str, set[str]] = {}
    for name, found_there in imported.items():
        seen: set[str] = set()
        ahead = list(found_there)
        while ahead:
            found = ahead.pop()
            if found not in seen:
                seen.add(found)
                ahead += imported[found]
        reachable[name] = seen
    groups = {
        tuple(sorted(other for other in seen if name in reachable[other]))
        for name, seen in reachable.items()
        if name in seen
    }
    return sorted(list(group) for group in groups)


def test_no_circles() -> None:
    """A package's `__init__` counts like any module; what is imported for typing alone counts too."""
    assert circles(graph()) == []


def test_circles_are_seen() -> None:
    found = circles({"a": {"b"}, "b": {"c"}, "c": {"b"}, "d": {"d"}, "e": {"a"}})
    assert found == [["b", "c"], ["d"]]


def test_the_check_itself_sees_an_upward_import() -> None:
    tree = ast.parse(
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import pyhv.cli\ndef f():\n"
        "    from pyhv import machine\n"
    )
    found = set(imports(tree))
    assert {"pyhv.machine", "pyhv.cli"} <= found
    assert layer("pyhv.machine") == LAYER_OF["machine"]
