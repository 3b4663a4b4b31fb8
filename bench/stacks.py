# SPDX-License-Identifier: GPL-2.0-only
"""From what a sampling profiler saw to stacks that can be read: names instead of addresses and files.

A stack is a line of py-spy's raw format, the outermost frame first, and how often it was seen:

    run (pyhv/cpu/engine.py:397);0x7f39aa30d11b (?);helper_syscall_x86_64 (libunicorn.so.2) 21

Each frame becomes one of these; what is only on the way, such as the command line or a conversion that Cython
made, is left out, and what remains counts for the caller:

    cpu.engine.Engine.run           interpreted
    traps.dispatch.Dispatcher.enter*   a function of pyhv that is compiled
    unicorn: helper_syscall         the emulator's own code
    guest code                      translated code
    tuned path                      native code that pyhv adds to the emulator
    python: ..., ctypes, libc       who serves them
"""

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Final, NamedTuple

from pyhv.lane import HOT

GUEST: Final = "guest code"
STUB: Final = "tuned path"
IMPORT: Final = "import"
_MODULE: Final = ".<module>"
UNICORN: Final = "unicorn: "
COMPILED: Final = "*"
LEAST: Final = 0.001
"""Frames that are a smaller part of the whole are counted for their callers."""

_FRAME: Final = re.compile(r"(?P<name>.*) \((?P<file>[^()]*?)(?::(?P<line>\d+))?\)")
_MODULES: Final = {name.rpartition(".")[2]: name.removeprefix("pyhv.") for name in HOT}
"""Of compiled modules, by the names of the C files that were made of them."""
_METHOD: Final = re.compile(r"([A-Z][A-Za-z0-9]*)_(.+)")
_CTYPES: Final = ("_ctypes.c", "callproc.c", "callbacks.c", "cfield.c", "libffi")
_ON_THE_WAY: Final = ("click/", "pyhv/cli/", "object.h", "contextlib.py", "threading.py", "importlib/")
"""Files whose functions are not worth a frame."""
_GENERATED: Final = ("thread_run", "__Pyx", "__pyx")


class Region(NamedTuple):
    """Where code is that belongs to no file: addresses, and whether it is the emulator's own translations."""

    first: int
    end: int
    translations: bool


def named(frame: str, regions: Sequence[Region] = ()) -> str | None:
    """One frame as it is to be read; None: it is to be left out."""
    found = _FRAME.fullmatch(frame)
    if found is None:
        return frame
    name, file = found["name"], found["file"]
    if file == "?":
        return _nameless(int(name, 16), regions)
    if name == "<module>" and file == "pyhv":
        return None
    if file.startswith(_ON_THE_WAY) or name.startswith(_GENERATED):
        return None
    if file.startswith("<frozen importlib"):
        return IMPORT
    if file.startswith("pyhv/"):
        return f"{file.removeprefix('pyhv/').removesuffix('.py').replace('/', '.')}.{name}"
    if file.endswith(".c") and (module := _MODULES.get(file.removesuffix(".c"))) is not None:
        return _compiled(name, module)
    return _served(name, file)


def _nameless(address: int, regions: Sequence[Region]) -> str:
    for region in regions:
        if region.first <= address < region.end:
            return GUEST if region.translations else STUB
    return GUEST


def _compiled(name: str, module: str) -> str:
    name = name.removeprefix(module.rpartition(".")[2] + "_")
    method = _METHOD.fullmatch(name)
    return f"{module}.{'.'.join(method.groups()) if method else name}{COMPILED}"


def _served(name: str, file: str) -> str:
    """A frame of somebody who is neither pyhv nor a guest."""
    if name.startswith("0x"):
        name = ""
    if "unicorn" in file:
        return UNICORN + (name.removesuffix("_x86_64") or "?")
    if file.startswith(_CTYPES):
        return "ctypes"
    if file.startswith(("libc.", "ld-linux", "[vdso]", "libm.")):
        return f"libc: {name}" if name else "libc"
    if file.endswith(".py"):
        return f"python: {file.removesuffix('.py').replace('/', '.')}.{name}"
    return f"python: {name}" if name else f"python: {file.partition('.')[0]}"


def readable(stack: str, regions: Sequence[Region] = ()) -> list[str]:
    """The frames of one stack, the outermost first. Empty: it only waits, and is not to be counted."""
    raw = stack.split(";")
    if raw[-1].startswith("0x") and any("acquire_lock" in frame or "sem_" in frame for frame in raw[-4:]):
        return []
    frames: list[str] = []
    names = [named(frame, regions) for frame in raw]
    for index, name in enumerate(names):
        following = names[index + 1] if index + 1 < len(names) else None
        if name is None or (name == "libc" and not frames):
            continue
        if name in (GUEST, STUB) and following == UNICORN + "cpu_exec":
            continue  # the way into the emulator: nobody knows where guest code is called from
        if not frames or frames[-1] != name:
            frames.append(name)
    return _without_tower(frames) or ["pyhv"]


def _without_tower(frames: list[str]) -> list[str]:
    """Who imports whom is of no interest, but whose package took the time."""
    if IMPORT not in frames:
        return frames
    modules = [frame for frame in frames if frame.endswith(_MODULE)]
    if not modules:
        return [IMPORT]
    first = modules[-1].removeprefix("python: ")
    package = first.partition(".")[0] if modules[-1] != first else "pyhv"
    return [IMPORT, f"{IMPORT} {package}"]


def folded(lines: Iterable[str], regions: Sequence[Region] = ()) -> Counter[tuple[str, ...]]:
    """All stacks, each once, with how often they were seen; frames that are too rare are cut off."""
    stacks: Counter[tuple[str, ...]] = Counter()
    for line in lines:
        stack, _, count = line.rstrip("\n").rpartition(" ")
        if frames := readable(stack, regions):
            stacks[tuple(frames)] += int(count)
    return pruned(stacks)


def pruned(stacks: Counter[tuple[str, ...]]) -> Counter[tuple[str, ...]]:
    """Without frames that make up less than `LEAST`: their callers have what was theirs."""
    seen: Counter[tuple[str, ...]] = Counter()
    for frames, count in stacks.items():
        for depth in range(1, len(frames) + 1):
            seen[frames[:depth]] += count
    least = LEAST * stacks.total()
    left: Counter[tuple[str, ...]] = Counter()
    for frames, count in stacks.items():
        depth = len(frames)
        while depth > 1 and seen[frames[:depth]] < least:
            depth -= 1
        left[frames[:depth]] += count
    return left


LAYERS: Final = {
    "guest's translated code": "rgb(250,210,90)",
    "emulator": "rgb(130,175,225)",
    "pyhv, compiled": "rgb(135,200,130)",
    "pyhv, interpreted": "rgb(235,140,120)",
    "Python and libraries": "rgb(205,200,195)",
}
"""Who a frame belongs to, and its colour."""


def layer(frame: str) -> str:
    """Of `LAYERS`."""
    if frame == GUEST:
        return "guest's translated code"
    if frame.startswith(UNICORN) or frame == STUB:
        return "emulator"
    if frame.endswith(COMPILED):
        return "pyhv, compiled"
    if frame in ("ctypes", "libc") or frame.startswith((IMPORT, "python: ", "libc: ")):
        return "Python and libraries"
    return "pyhv, interpreted"


def shares(stacks: Counter[tuple[str, ...]]) -> dict[str, float]:
    """The part of the whole that was spent in each layer itself, callees apart."""
    own: Counter[str] = Counter()
    for frames, count in stacks.items():
        own[layer(frames[-1])] += count
    return {name: own[name] / (stacks.total() or 1) for name in LAYERS}
