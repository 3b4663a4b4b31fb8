# SPDX-License-Identifier: GPL-2.0-only
"""A process that writes a disk until it is killed, and says what it does: `disk_writer.py IMAGE FORMAT SEED`.

Before a write it prints `w NUMBER BLOCK` (NUMBER of the write, which is what the block then holds) or `d
NUMBER BLOCK` (discarded), and `f NUMBER` when a flush of all up to that one has returned. `Expectation` takes
the lines in, and knows what each sector of the disk may hold after that.
"""

import random
import sys
from collections.abc import Iterable

BLOCK = 4096
SECTOR = 512


def sector_of(number: int, block: int) -> bytes:
    """What a write of that number puts into each sector of a block."""
    return (b"%d %d " % (number, block)).ljust(SECTOR, b"%c" % (number % 255 + 1))


def work(path: str, form: str, seed: int) -> None:
    """Write, discard and flush, until somebody kills us."""
    from pyhv.storage.open import open_image

    chance = random.Random(seed)
    disk = open_image(path, form, writable=True)
    blocks = disk.size // BLOCK
    number = 0
    print("ready", flush=True)
    while True:
        for _ in range(chance.randrange(1, 12)):
            number += 1
            first = chance.randrange(blocks)
            count = min(chance.choice((1, 1, 1, 4, 17)), blocks - first)
            discards = chance.random() < 0.15
            for block in range(first, first + count):
                print("d" if discards else "w", number, block)
            sys.stdout.flush()
            if discards:
                disk.discard(first * BLOCK, count * BLOCK)
            else:
                disk.write(
                    first * BLOCK,
                    b"".join(sector_of(number, block) * 8 for block in range(first, first + count)),
                )
        disk.flush()
        print("f", number, flush=True)


class Expectation:
    """What each block may hold, by what the writer has said."""

    def __init__(self, lines: Iterable[str], before: bytes) -> None:
        self._before = before
        self._told: dict[int, list[tuple[int, bool]]] = {}
        self.flushed = 0
        """The last write that must be there."""
        for line in lines:
            match line.split():
                case ["w" | "d" as what, number, block]:
                    self._told.setdefault(int(block), []).append((int(number), what == "d"))
                case ["f", number]:
                    self.flushed = int(number)

    def wrong(self, found: bytes) -> list[int]:
        """Blocks of a disk that hold what they must not."""
        return [
            at // BLOCK
            for at in range(0, len(found), BLOCK)
            if not self._may_be(at // BLOCK, found[at : at + BLOCK])
        ]

    def _may_be(self, block: int, held: bytes) -> bool:
        start = block * BLOCK
        if not held:
            return True
        allowed = [{self._before[start + at : start + at + SECTOR]} for at in range(0, BLOCK, SECTOR)]
        for number, discarded in self._told.get(block, []):
            more = bytes(SECTOR) if discarded else sector_of(number, block)
            for options in allowed:
                if number <= self.flushed and not discarded:
                    options.clear()  # this one was acknowledged, and with it all that came before is gone
                options.add(more)
        return all(held[n * SECTOR : (n + 1) * SECTOR] in options for n, options in enumerate(allowed))


if __name__ == "__main__":
    work(sys.argv[1], sys.argv[2], int(sys.argv[3]))
