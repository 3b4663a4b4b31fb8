# SPDX-License-Identifier: GPL-2.0-only
"""The targets by name. Imports them only when asked, so that they can be instrumented."""

import importlib

from fuzz.target import Target

_CLASSES = {
    "hypercalls": ("fuzz.hypercalls", "Hypercalls"),
    "hypercalls32": ("fuzz.hypercalls", "Hypercalls32"),
    "emulator": ("fuzz.emulator", "Emulator"),
    "emulator32": ("fuzz.emulator", "Emulator32"),
    "frames": ("fuzz.frames", "Frames"),
    "images": ("fuzz.images", "Images"),
    "recordings": ("fuzz.recordings", "Recordings"),
    "qcow2": ("fuzz.qcow2", "Qcow2"),
    "rings": ("fuzz.rings", "Rings"),
    "smc": ("fuzz.smc", "Smc"),
    "snapshots": ("fuzz.snapshots", "Snapshots"),
}
TARGETS = tuple(_CLASSES)


def make(name: str) -> Target:
    """A new target."""
    module, kind = _CLASSES[name]
    made = getattr(importlib.import_module(module), kind)()
    assert isinstance(made, Target)
    return made
