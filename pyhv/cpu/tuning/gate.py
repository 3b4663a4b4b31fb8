# SPDX-License-Identifier: GPL-2.0-only
"""The one gate to the emulator's code paths: all that is asked for fits and is proven, or nothing is touched.

`tuning()` decides once per process. What it answers with, `Tuning`, makes single engines tuned; an engine
that is not attached keeps the library's own paths, whatever else this process does.
"""

import os
import platform
from collections.abc import Callable, Iterable
from typing import Final

from pyhv.cpu.once import once
from pyhv.cpu.probe import find_no_exit_request
from pyhv.cpu.ram import Ram
from pyhv.cpu.selftest import check
from pyhv.cpu.slots import library
from pyhv.cpu.trial import BrokenPromise, Trial
from pyhv.cpu.tuning import layout
from pyhv.cpu.tuning.block import Block, BlockLayout, region_of
from pyhv.cpu.tuning.catalogue import PATCHES
from pyhv.cpu.tuning.form import Patch
from pyhv.cpu.tuning.install import Installation, Unfit
from pyhv.errors import GuestCrash
from pyhv.frozen import frozen

SWITCH: Final = "PYHV_ENGINE_TUNING"
"""Environment variable: "0" leaves the library alone."""


@frozen
class Tuning:
    """The process's answer: engines can be tuned, or `why_not` is a clause that says why not."""

    patches: tuple[Patch, ...] = ()
    why_not: str = ""
    form: BlockLayout | None = None
    """Of the engines' blocks."""

    @property
    def active(self) -> bool:
        """Whether engines can be tuned."""
        return self.form is not None

    def attach(self, handle: int, ram: Ram, counter: tuple[int, int] = (0, 0)) -> Block | None:
        """Tune a new engine over `ram`, which has executed nothing yet and looks for stops at block starts
        alone; None if it is to stay as it is. `Block.detach` before it is freed.

        `counter` are the addresses of its native block hook and of the budget that counts, 0 without one.
        """
        if self.form is None:
            return None
        region = region_of(handle, ram)
        return None if region is None else Block(handle, ram, region, self.form, counter)


def unsuitable() -> str:
    """Why the library on this host cannot be tuned, as far as that can be told at a glance; else empty."""
    if os.environ.get(SWITCH) == "0":
        return f"{SWITCH}=0 is set"
    if platform.machine() != "x86_64":
        return f"it is for x86-64 hosts, and this is {platform.machine()}"
    if library().build_id != layout.BUILD_ID:
        return f"the library is another build ({library().build_id or 'it has no build-id'})"
    if find_no_exit_request() is None:
        return "the library's look for a stop after each load and store cannot be switched off"
    return ""


def make_tuning(patches: tuple[Patch, ...], *proofs: Callable[[Trial], None]) -> Tuning:
    """Install the patches and prove them; if that fails, change nothing and say why.

    Beside the patches' own there may be other `proofs` of what the engines do with all of them.
    """
    why_not = unsuitable()
    if why_not:
        return Tuning(patches, why_not)
    try:
        installation = Installation(patches, library())
    except Unfit as unfit:
        return Tuning(patches, str(unfit))
    except OSError as error:
        return Tuning(patches, f"the host gives no memory that is writable and executable ({error})")
    proven = False
    installation.install()
    try:
        tuning = Tuning(patches, form=installation.form)
        _prove(tuning, (*proofs, *(patch.proof for patch in patches)))
        if not installation.holds:
            raise BrokenPromise("pointers that were written keep their values")
        proven = True
    except BrokenPromise as broken:
        return Tuning(patches, f"a proof failed: {broken.promise}")
    except GuestCrash as crash:
        return Tuning(patches, f"a proof could not be run: {crash.why}")
    finally:
        if not proven:
            installation.remove()
    _installed.append(installation)
    return tuning


def _prove(tuning: Tuning, proofs: Iterable[Callable[[Trial], None]]) -> None:
    """Run the proofs on a throwaway engine with all patches. BrokenPromise if one does not hold."""
    with Trial(tuning) as trial:
        trial.expect("a throwaway engine can be tuned", trial.engine.tuned)
        for proof in proofs:
            proof(trial)
            trial.reset()


_installed: list[Installation] = []
"""Their code must stay where it is as long as the process lives."""


@once
def tuning() -> Tuning:
    """The process's tuning, decided at the first call. Where it is active, tuned engines have passed the
    self-test."""
    return make_tuning(PATCHES, check)
