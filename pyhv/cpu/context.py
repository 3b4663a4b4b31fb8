# SPDX-License-Identifier: GPL-2.0-only
"""Where a vCPU's registers are: in its engine while it is the one loaded there, and at rest otherwise.

At rest they are the engine's own state block, which is loaded and saved in a third of a microsecond; the form
that leaves the engine is `Registers`. The vCPUs of a domain share one engine, and each has a context of it.
"""

from collections.abc import Mapping
from typing import ClassVar

from pyhv.cpu import registers as named
from pyhv.cpu.engine import Engine
from pyhv.cpu.registers import Registers
from pyhv.state import Plain, construct, entries, state


class Context:
    """One vCPU's registers on `engine`."""

    __slots__ = ("_block", "_engine", "_new")

    NOT_STATE: ClassVar[Mapping[str, str]] = {
        "_engine": "given",
        "_block": "the engine's own form of `registers`",
        "_new": "set with them",
    }

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._block: bytes | None = None
        self._new = False
        """They were set by name, and have not been loaded since."""

    @property
    def loaded(self) -> bool:
        """Whether the engine holds them."""
        return self._engine.holder is self

    @property
    def empty(self) -> bool:
        """Whether no registers have been set yet."""
        return self._block is None and not self.loaded

    def load(self) -> bool:
        """Make the engine hold them; those that it held come to rest. Not while it runs.

        True if they were set by name: what else of its state is the vCPU's has to be set as well, once.
        """
        holder = self._engine.holder
        if holder is self:
            return False
        if isinstance(holder, Context):
            holder.rest()
        if self._block is not None:
            self._engine.vmcb.raw[:] = self._block
        self._engine.holder = self
        new, self._new = self._new, False
        return new

    def rest(self) -> None:
        """Take them out of the engine, which then holds nobody's."""
        if self.loaded:
            vmcb = self._engine.vmcb
            vmcb.set_rflags(self._engine.rflags())  # lazy flags, which are better computed where they are
            self._block = bytes(vmcb.raw)
            self._engine.holder = None

    @property
    def registers(self) -> Registers:
        """A copy of them, by name. Also within an exit."""
        if self.loaded or self._block is None:
            return named.read(self._engine)
        raw = self._engine.vmcb.raw
        others = bytes(raw)
        raw[:] = self._block
        found = named.read(self._engine)
        raw[:] = others
        return found

    @registers.setter
    def registers(self, wanted: Registers) -> None:
        self.rest()
        raw = self._engine.vmcb.raw
        others = bytes(raw)
        named.write(self._engine, wanted)
        self._block, self._new = bytes(raw), True
        raw[:] = others

    def state(self) -> dict[str, Plain]:
        """Its registers; None: none have been set."""
        return {"registers": None if self.empty else state(self.registers)}

    def restore(self, saved: Mapping[str, Plain]) -> None:
        """Take registers over, at rest. StateError."""
        registers = entries(dict(saved), "", {"registers": None})["registers"]
        if registers is None:
            self.rest()
            self._block, self._new = None, False
        else:
            self.registers = construct(Registers, registers, "registers")
