# SPDX-License-Identifier: GPL-2.0-only
"""Listings: which bytes of a kernel each line of its source has become, as text that is read again.

    # address  bytes  line  statement
    /home/me/hello.S:
      0000000000100000  4889f7                          12  mov rdi, rsi

A file's name stands above its lines whenever it changes. What a macro stands for has the line on which it is
used. `pyhv build --listing` writes one; `pyhv boot --coverage` reads the one beside a kernel.
"""

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from pyhv.errors import ImageError
from pyhv.frozen import frozen

SUFFIX: Final = ".lst"
"""A listing is looked for beside its kernel, under the same name with this suffix."""
_TITLE: Final = "# address  bytes  line  statement\n"
_MOST_BYTES: Final = 15
_CUT: Final = ".."
_LINE: Final = re.compile(r"  ([0-9a-f]{16})  ((?:[0-9a-f]{2})*)(\.\.)? *  (\d+)  (.*)")


@frozen
class Listed:
    """A statement: its address, the bytes it has become, its place, and its text without comment.

    Of what was read from a file the bytes may be the first ones; of instructions they are all there.
    """

    address: int
    code: bytes
    path: Path
    line: int
    text: str

    @property
    def executable(self) -> bool:
        """Whether it is an instruction, and no data."""
        return not self.text.startswith(".") and bool(self.code)


def written(lines: Iterable[Listed]) -> str:
    """The text of a listing."""
    parts, path = [_TITLE], None
    for one in lines:
        if one.path != path:
            path = one.path
            parts.append(f"{path}:\n")
        code = one.code[:_MOST_BYTES].hex() + (_CUT if len(one.code) > _MOST_BYTES else "")
        parts.append(f"  {one.address:016x}  {code:<32}{one.line:6}  {one.text}\n")
    return "".join(parts)


def read_listing(file: Path) -> list[Listed]:
    """What a listing says. ImageError: it cannot be read, or is none."""
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError) as cause:
        reason = cause.strerror if isinstance(cause, OSError) else "it is no text"
        raise ImageError(f"{file}: the listing cannot be read ({reason})") from cause
    found, path = [], None
    for number, line in enumerate(lines, 1):
        match = _LINE.fullmatch(line)
        if match is not None and path is not None:
            address, code, _cut, at, text = match.groups()
            found.append(Listed(int(address, 16), bytes.fromhex(code), path, int(at), text))
        elif line.startswith("/") and line.endswith(":"):
            path = Path(line[:-1])
        elif line and not line.startswith("#"):
            raise ImageError(f"{file}: line {number} is not as `pyhv build --listing` writes it")
    return found
