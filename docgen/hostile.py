# SPDX-License-Identifier: GPL-2.0-only
"""`docs/hostile.md`, written from the first lines of the hostile guests: `python -m docgen.hostile`.

Each source under `pyhv/guests/hostile/` begins with what it tries, in one line, and three fields: the class
of flaw, the advisories of the Xen project in which that class was seen, and what is refused and how. This
module knows nothing of the attacks themselves.
"""

import re
from dataclasses import dataclass

from pyhv.errors import ImageError
from pyhv.guests.catalogue import HOSTILE, description_of, source_of

_INTRODUCTION = """\
# Hostile guests

A hypervisor is as good as what it refuses. Each kernel below attacks pyhv in one way in which hypervisors
that run PV guests have been broken, attack after attack, and knows the one right answer to each: an errno, a
status, an exception. It prints `SUCCESS` only if every answer was right; the first wrong one is told as
`FAILED: ...`, and the guest then ends with the shutdown reason "crash". The numbers are those of the Xen
Security Advisories in which flaws of that class were described; nothing of them is repeated here.

```
pyhv boot hostile/grants
pyhv boot hostile/races --vcpus 2
```

`tests/guests/test_hostile.py` runs each beside two guests that work together and must notice nothing, in both
kinds of time, counts every reference of every frame anew while it runs (`mmu/audit.py`), and looks afterwards
whether a frame was lost. It also breaks pyhv on purpose, check by check, and wants to see the guests notice.

*This page is generated:* `python -m docgen.hostile > docs/hostile.md`.

"""
_FIELD = re.compile(r"# (Class|History|Refused): (.*)")
_ADVISORIES = re.compile(r"XSA-\d+(, XSA-\d+)*")


@dataclass(frozen=True)
class Attacker:
    """One hostile guest, as its first lines describe it."""

    name: str
    tries: str
    flaw: str
    history: str
    refused: str


def read(name: str) -> Attacker:
    """The description of one guest of `HOSTILE`. Raises `ImageError` if a field is missing."""
    fields: dict[str, str] = {}
    current = ""
    for line in source_of(name).read_text(encoding="utf-8").splitlines():
        found = _FIELD.fullmatch(line)
        if found:
            current = found[1]
            fields[current] = found[2]
        elif current and line.startswith("#   "):
            fields[current] += " " + line[4:].strip()
        elif not line.startswith("#"):
            break
    if set(fields) != {"Class", "History", "Refused"} or not _ADVISORIES.fullmatch(fields["History"]):
        raise ImageError(f"{name}: its first lines want `# Class: `, `# History: XSA-...` and `# Refused: `")
    return Attacker(name, description_of(name), fields["Class"], fields["History"], fields["Refused"])


def _sentence(text: str) -> str:
    return text[0].upper() + text[1:]


def document() -> str:
    """The whole page in Markdown."""
    lines = [_INTRODUCTION + "| guest | class | seen in |", "| --- | --- | --- |"]
    attackers = [read(name) for name in HOSTILE]
    lines += [f"| `{one.name}` | {one.flaw} | {one.history} |" for one in attackers]
    for one in attackers:
        lines += ["", f"## {one.name}", "", f"*{_sentence(one.tries)}.*", "", _sentence(one.refused)]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    print(document(), end="")
