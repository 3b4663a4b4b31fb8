# SPDX-License-Identifier: GPL-2.0-only
"""What a profiler saw becomes stacks that can be read, and a picture of them."""

import os
import re
from collections import Counter
from pathlib import Path

import pytest

from bench import flame
from bench.stacks import GUEST, IMPORT, LAYERS, STUB, Region, folded, layer, named, pruned, readable, shares
from pyhv.lane import HOT

PROJECT = Path(__file__).resolve().parents[2]
REGIONS = [Region(0x7F0000000000, 0x7F0001C00000, True), Region(0x7F1000000000, 0x7F1000001000, False)]


@pytest.mark.parametrize(
    ("frame", "name"),
    [
        ("Engine.run (pyhv/cpu/engine.py:397)", "cpu.engine.Engine.run"),
        ("Dispatcher__perform (dispatch.c:13546)", "traps.dispatch.Dispatcher._perform*"),
        ("exithooks__entered (exithooks.c:4555)", "cpu.exithooks._entered*"),
        ("write_time (vcpu_info.c:100)", "events.vcpu_info.write_time*"),
        ("helper_syscall_x86_64 (libunicorn.so.2)", "unicorn: helper_syscall"),
        ("0x7f0000a1b2c3 (?)", GUEST),
        ("0x7f1000000123 (?)", STUB),
        ("PyCFuncPtr_call (_ctypes.c:4201)", "ctypes"),
        ("0x7fe26638ba26 (libc.so.6)", "libc"),
        ("munmap (libc.so.6)", "libc: munmap"),
        ("dataclass.<locals>.wrap (dataclasses.py:12)", "python: dataclasses.dataclass.<locals>.wrap"),
        ("gc_collect_main (libpython3.11.so.1.0)", "python: gc_collect_main"),
        ("_find_spec (<frozen importlib._bootstrap>:9)", IMPORT),
        ("Command.invoke (click/core.py:1414)", None),
        ("boot (pyhv/cli/boot.py:187)", None),
        ("Py_DECREF (object.h:538)", None),
        ("__pyx_lambda_funcdef_lambda6 (signature.c:6527)", None),
    ],
)
def test_each_frame_has_a_name(frame: str, name: str | None) -> None:
    assert named(frame, REGIONS) == name


def test_no_two_compiled_modules_have_one_name() -> None:
    """Their C files are told apart by it."""
    assert len({name.rpartition(".")[2] for name in HOT}) == len(HOT)


def test_a_stack_loses_what_is_only_on_the_way() -> None:
    stack = (
        "0x7fe26624524a (libc.so.6);<module> (pyhv:8);Command.main (click/core.py:1560);"
        "Engine.run (pyhv/cpu/engine.py:397);0x7f1000000123 (?);cpu_exec_x86_64 (libunicorn.so.2);"
        "send (events.c:1);send (events.c:9);Py_XDECREF (object.h:602)"
    )
    assert readable(stack, REGIONS) == [
        "cpu.engine.Engine.run",
        "unicorn: cpu_exec",
        "hypercalls.events.send*",
    ]


def test_who_only_waits_is_not_counted() -> None:
    wait = "run (threading.py:9);lock_PyThread_acquire_lock (libpython3.11.so.1.0);0x7fe2662ae116 (libc.so.6)"
    assert folded([f"{wait} 100", "Engine.run (pyhv/cpu/engine.py:1) 3"]).total() == 3


def test_imports_are_told_by_package() -> None:
    tower = (
        "_load (<frozen importlib._bootstrap>:1);<module> (pyhv/machine.py:1);"
        "_load (<frozen importlib._bootstrap>:1);<module> (numpy/core.py:3);f (numpy/doc.py:2)"
    )
    assert readable(tower) == [IMPORT, "import numpy"]
    assert readable("_load (<frozen importlib._bootstrap>:1);<module> (pyhv/machine.py:1)") == [
        IMPORT,
        "import pyhv",
    ]


def test_what_is_rare_is_its_callers() -> None:
    stacks = Counter({("a", "b"): 9_990, ("a", "b", "c"): 9, ("a", "b", "d"): 60})
    assert pruned(stacks) == {("a", "b"): 9_999, ("a", "b", "d"): 60}


def test_time_is_told_by_layer() -> None:
    stacks = Counter(
        {
            ("cpu.engine.Engine.run", GUEST): 50,
            ("cpu.engine.Engine.run", GUEST, "unicorn: x"): 30,
            ("a.b*",): 10,
            ("a.b",): 6,
            ("ctypes",): 4,
        }
    )
    assert list(shares(stacks).values()) == [0.5, 0.3, 0.1, 0.06, 0.04]


def test_frames_get_their_layers_colours() -> None:
    frame = '<g><title>%s (5 samples, 1.00%%)</title><rect x="1" y="2" fill="rgb(1,2,3)" fg:x="0"/></g>'
    for name in ("guest code", "traps.dispatch.f*", "python: a.&lt;locals&gt;.b", "pcpu.Pcpu.begin"):
        colour = LAYERS[layer(name.replace("&lt;", "<"))]
        assert f'fill="{colour}"' in flame.coloured(frame % name)


def test_mappings_without_a_file_are_found() -> None:
    import mmap

    small = mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_EXEC)
    large = mmap.mmap(-1, flame.TRANSLATIONS_FROM, prot=mmap.PROT_READ | mmap.PROT_EXEC)
    found = flame.executable(os.getpid())
    assert any(region.translations for region in found)
    assert any(not region.translations for region in found)
    assert not flame.executable(2**22 + 1)
    small.close()
    large.close()


@pytest.mark.parametrize("name", ["boot", "fork"])
def test_the_graphs_of_the_page_can_be_read(name: str) -> None:
    path = PROJECT / "docs" / "flame" / f"{name}.svg"
    text = path.read_text(encoding="utf-8")
    assert path.stat().st_size < 300_000
    titles = re.findall(r"<title>(.*?) \([\d,]+ samples", text)
    assert {"guest code", "cpu.engine.Engine.run", "traps.dispatch.Dispatcher.syscall*"} <= set(titles)
    assert not [title for title in titles if "0x" in title]
    assert f"flame/{name}.svg" in (PROJECT / "docs" / "performance.md").read_text(encoding="utf-8")
