# SPDX-License-Identifier: GPL-2.0-only
"""QEMU's tools for images, and nbdkit, as the judges of what pyhv reads, writes and says to a server."""

import functools
import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

_PACKAGES = {"qemu-img": "qemu-utils", "qemu-io": "qemu-utils", "qemu-nbd": "qemu-utils", "nbdkit": "nbdkit"}


@functools.cache
def tool(name: str) -> str:
    """Where a tool is; skips the test, or in CI fails it, where it is missing."""
    found = shutil.which(name) or shutil.which(name, path="/usr/sbin:/sbin")
    if found is None:
        sentence = f"there is no {name} here: apt install {_PACKAGES[name]}"
        if os.environ.get("CI"):
            pytest.fail(sentence)
        pytest.skip(sentence)
    return found


def qemu_img(*arguments: str | Path, ok: tuple[int, ...] = (0,)) -> str:
    """Run `qemu-img`; what it printed."""
    done = subprocess.run([tool("qemu-img"), *map(str, arguments)], capture_output=True, text=True)
    assert done.returncode in ok, f"qemu-img {arguments}: {done.returncode}\n{done.stdout}{done.stderr}"
    return done.stdout


def qemu_io(image: Path, *commands: str, options: tuple[str, ...] = ()) -> str:
    """Run commands of `qemu-io` on an image."""
    arguments = [argument for command in commands for argument in ("-c", command)]
    done = subprocess.run([tool("qemu-io"), *options, *arguments, str(image)], capture_output=True, text=True)
    assert done.returncode == 0, f"qemu-io {commands}: {done.stdout}{done.stderr}"
    return done.stdout


def checked(image: Path, *, leaks: bool = False) -> dict[str, Any]:
    """What `qemu-img check` says of a qcow2 image that must have no errors, and no leaks unless they are
    allowed."""
    said: dict[str, Any] = json.loads(
        qemu_img("check", "--output=json", "-f", "qcow2", image, ok=(0, 3) if leaks else (0,))
    )
    assert not said.get("corruptions"), said
    assert said["check-errors"] == 0, said
    assert leaks or not said.get("leaks"), said
    return said


def contents(image: Path, scratch: Path, form: str = "qcow2") -> bytes:
    """All bytes of the disk in an image, as QEMU reads it."""
    target = scratch / f"{image.name}.contents"
    qemu_img("convert", "-f", form, "-O", "raw", image, target)
    found = target.read_bytes()
    target.unlink()
    return found
