# SPDX-License-Identifier: GPL-2.0-only
"""Which kernels run, and how far: each is fetched, booted by `pyhv boot` at a terminal, and talked to.

A `Subject` is a kernel with a dialogue; what it says when is recorded, and `document` makes the page of it
(docs/compatibility.md). Nothing in the table is written by hand but the remarks, which say what is known of
a subject that does not come as far as the others: they are printed only beside a result that needs one.
"""

import re
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import pexpect

from bench import selftests
from bench.guest import command_prefix
from pyhv.errors import EnvironmentProblem, ExitCode
from pyhv.images import debian, kernels
from pyhv.images.kernels import KERNELS, Packaged
from pyhv.images.progress import Progress

SUITES = ("bullseye", "bookworm", "bookworm-backports", "trixie", "trixie-backports", "sid")
_COMPLAINT = re.compile(r"\] ((?:BUG|WARNING|INFO: task|rcu: INFO|Oops|kernel BUG)\b[^\r\n]*)")
_CONTROL = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]|[\x00-\x08\x0b-\x1f\x7f]")
_ADDRESS = re.compile(r"\s*(?:https?://\S+|\[IP: [^\]]*\])")
"""Where a mirror is does not belong into a table."""


@dataclass(frozen=True, slots=True)
class Step:
    """Wait for `pattern` (its first group, or all of it, is the proof), then type `answer`."""

    name: str
    pattern: str
    answer: str = ""


@dataclass(frozen=True, slots=True)
class Subject:
    """A kernel: its name, the arguments that make `pyhv boot` boot it, how to fetch it first, what to say.

    `fetch` returns the package with its version. `end` is what its end is called.
    """

    name: str
    arguments: tuple[str, ...]
    fetch: Callable[[Progress], str]
    steps: tuple[Step, ...]
    width: int = 64
    end: str = "power-off"
    remark: str = ""


@dataclass(frozen=True, slots=True)
class Result:
    """What came of one subject. `reached` is the last step; times in seconds from the program's start."""

    subject: Subject
    package: str
    reached: str
    proof: str = ""
    complaint: str = ""
    said: str = ""
    exit_code: int | None = None
    ready_s: float | None = None
    total_s: float | None = None

    @property
    def is_complete(self) -> bool:
        """Whether every step was reached, the end too, and with success."""
        return self.reached == self.subject.end and self.exit_code == 0


LINUX = (
    Step("kernel", r"Linux version (\S+)"),
    Step("init", r"PYHV-INIT-OK"),
    Step("shell", r"[/~] # ", 'echo "$(cat /sys/hypervisor/type): $(uname -rv)"\r'),
    Step("command", r"\nxen: ([^\r\n]+)", "poweroff -f\r"),
)
GRUB = (
    Step("banner", r"GNU GRUB  version \S+"),
    Step("prompt", r"grub> ", "ls\r"),
    Step("ls", r"\(memdisk\)[^\r\n]*", "set pyhv=prompt; echo $pyhv reached\r"),
    Step("echo", r"prompt reached", "help halt\r"),
    Step("help", r"Usage: halt[^\r\n]*", "halt\r"),
)
_MACH_REMARK = (
    "Mach stores into its page directory after it has handed the page tables to Xen; the store faults, Mach"
    " panics before it has a console, and shuts down with the low byte of a stack address as the reason."
)
_MACH_GENUINE = (
    " Genuine Xen 4.17 delivers the same fault at the same instruction and records the same reason"
    " (observed with the kernel started without the flag of dom0, in which it refuses to run)."
)
_RT_REMARK = (
    "Linux queues the RCU quiescent-state work of a CPU (rcu_data.defer_qs_iw) while it is queued, and"
    " irq_work_run_list never ends. The same kernel hangs in the same loop as dom0 of genuine Xen 4.17."
)
REMARKS = {("bookworm", "rt"): _RT_REMARK}


def subjects() -> Iterator[Subject]:
    """All of them, in the order of the table."""
    for suite in SUITES:
        for flavour in debian.FLAVOURS:
            yield _linux(suite, flavour)
    for width, name in ((64, "pv-grub"), (32, "pv-grub-32")):
        yield Subject(f"PV-GRUB 2 {width}-bit", (name,), _packaged(name), GRUB, width)
    yield _mach("gnumach", "bookworm", KERNELS["gnumach"], 64, _MACH_REMARK + _MACH_GENUINE)
    yield _mach("gnumach-32", "bookworm", KERNELS["gnumach-32"], 32, _MACH_REMARK)
    later = Packaged("gnumach-image-1.8-xen-amd64", KERNELS["gnumach"].member, "trixie")
    yield _mach("gnumach-later", "trixie", later, 64, "")


def _linux(suite: str, flavour: str) -> Subject:
    def fetch(progress: Progress) -> str:
        return f"linux-image-{debian.ensure(progress, flavour=flavour, suite=suite).version}"

    arguments = ("debian", "--suite", suite, "--flavour", flavour)
    remark = REMARKS.get((suite, flavour), "")
    return Subject(f"Linux, {suite}, {flavour}", arguments, fetch, LINUX, remark=remark)


def _packaged(name: str) -> Callable[[Progress], str]:
    return lambda progress: kernels.ensure(name, KERNELS[name], progress).version


def _mach(name: str, suite: str, packaged: Packaged, width: int, remark: str) -> Subject:
    arguments = (name,) if name in KERNELS else (str(kernels.location(name, packaged)), "--name", name)
    return Subject(
        f"GNU Mach, {suite}, {width}-bit", arguments,
        lambda progress: kernels.ensure(name, packaged, progress).version,
        (), width, end="shuts itself down", remark=remark,
    )  # fmt: skip


def run(subject: Subject, progress: Progress, timeout_s: float) -> Result:
    """Fetch and boot one subject. What goes wrong is a result, not an error."""
    try:
        package = subject.fetch(progress)
    except EnvironmentProblem as problem:
        return Result(subject, "", "not fetched", said=_ADDRESS.sub("", str(problem)).partition("; ")[0])
    command = [*command_prefix(), "boot", *subject.arguments]
    began = time.perf_counter()
    child = pexpect.spawn(
        command[0], command[1:], timeout=timeout_s, encoding="utf-8", codec_errors="replace", echo=False
    )
    log: list[str] = []
    result = Result(subject, package, "nothing")
    try:
        result = _converse(child, result, began, log)
    finally:
        child.close(force=True)
    text = "".join(log)
    code = child.exitstatus if child.exitstatus is not None else -(child.signalstatus or 0)
    complaint = _COMPLAINT.search(text)
    return replace(
        result,
        exit_code=None if result.said else code,
        complaint=_plain(complaint[1]) if complaint else "",
        said=result.said or _own_message(text).removeprefix(f"{subject.arguments[0]}: "),
        total_s=time.perf_counter() - began,
    )


def _converse(child: pexpect.spawn, result: Result, began: float, log: list[str]) -> Result:
    """Go through the steps as far as it goes; `said` is set if it went no further."""
    for step in result.subject.steps:
        found = child.expect([step.pattern, pexpect.EOF, pexpect.TIMEOUT])
        log.append(str(child.before))
        if found == 1:
            return result
        if found == 2:
            last = [line for line in _plain_lines("".join(log)) if line][-1:]
            return replace(result, said=f"no more progress after: {''.join(last)}")
        log.append(child.after)
        shown = child.match[1] if child.match.lastindex else child.match[0]
        result = replace(result, reached=step.name, proof=_plain(shown), ready_s=time.perf_counter() - began)
        child.send(step.answer)
    if child.expect([pexpect.EOF, pexpect.TIMEOUT]) == 0:
        log.append(child.before)
        return replace(result, reached=result.subject.end)
    log.append(str(child.before))
    return replace(result, said="it did not end when it was told to")


def _plain(text: str) -> str:
    return _CONTROL.sub("", text).strip()


def _plain_lines(text: str) -> list[str]:
    return [_plain(line) for line in text.split("\n")]


def _own_message(text: str) -> str:
    """The last thing that pyhv itself had to say about the guest's end."""
    lines = [line.removeprefix("pyhv: ") for line in _plain_lines(text) if line.startswith("pyhv: ")]
    return next((line for line in reversed(lines) if not line.startswith("Ctrl-]")), "")


HEADER = """\
# Compatibility

Which unmodified Xen PV kernels run on pyhv, and how far. Generated by `python -m bench compatibility --write
docs/compatibility.md`, which fetches each kernel from Debian's archive, boots it with `pyhv boot` at a
terminal, talks to it, and writes down what it answered. Nothing in the tables is written by hand, except for
the remarks under them.

Linux gets the initramfs of `pyhv boot debian`: it has come all the way when it has booted to a shell, run a
command there and powered off with exit code 0. PV-GRUB has to answer `ls`, `set`, `echo` and `help` at its
prompt, and `halt`. *Ready* is the time from the command to the last answer before the end, unpacking of the
kernel included.
"""
FOOTER = """
## Not in the table

- Mini-OS stub domains, NetBSD's XEN3_DOMU and Unikraft: Debian packages none of them. (xen-utils has
  hvmloader and xen-shim, which are for HVM and PVH domains.)
- 32-bit Linux: Debian's kernels for i386 have been without PV support since Linux 5.9 dropped it.
- PV-GRUB that boots another kernel: it reads kernels from block devices and from the memdisk inside its own
  image, never from the ramdisk that a domain starts with.
"""


def document(results: Sequence[Result], conditions: str) -> str:
    """The page. `conditions` says where and when it was measured."""
    lines = [HEADER, f"{conditions}\n"]
    lines += [
        "| kernel | package | width | how far | what proves it | exit code | ready | total | remarks |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    notes: list[str] = []
    for result in results:
        lines.append(_row(result, notes))
    if notes:
        lines += ["", "## Remarks", ""]
        lines += [f"{number}. {note}" for number, note in enumerate(notes, 1)]
    return "\n".join(lines) + "\n" + FOOTER + selftests.section(selftests.table())


def _row(result: Result, notes: list[str]) -> str:
    subject = result.subject
    cells = [
        subject.name,
        result.package or "-",
        str(subject.width),
        _how_far(result),
        f"`{result.proof}`" if result.proof else "-",
        "-" if result.exit_code is None else str(result.exit_code),
        _seconds(result.ready_s),
        _seconds(result.total_s),
        _notes_of(result, notes),
    ]
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _how_far(result: Result) -> str:
    if result.exit_code == ExitCode.ENVIRONMENT:
        return "refused by the loader"
    return "all the way" if result.is_complete and result.subject.steps else result.reached


def _notes_of(result: Result, notes: list[str]) -> str:
    """References to the remarks on a result, which are added to `notes`."""
    own = []
    if result.complaint:
        own.append(f"The kernel complains: `{result.complaint}`.{_complaint_remark(result.complaint)}")
    elif result.said:
        sentence = result.said[0].upper() + result.said[1:]
        own.append(f"{sentence}. {result.subject.remark}".strip())
    numbers = []
    for note in own:
        if note not in notes:
            notes.append(note)
        numbers.append(f"[{notes.index(note) + 1}](#remarks)")
    return ", ".join(numbers)


def _complaint_remark(complaint: str) -> str:
    for pattern, remark in COMPLAINTS.items():
        if pattern in complaint:
            return f" {remark}"
    return ""


COMPLAINTS = {
    "mm/slub.c": "Under PREEMPT_RT a page table's lock hangs on the word of `struct page` in which"
    " Linux's Xen code keeps the user half of an L4, and freeing the L4 frees the one as the other. (From"
    " Linux's sources; not compared with genuine Xen.)",
}
"""Known causes of what kernels complain about, by a part of the line."""


def _seconds(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f} s"


def brief(result: Result) -> str:
    """One line for whoever waits."""
    code = "" if result.exit_code is None else f", exit code {result.exit_code}"
    return f"{result.subject.name}: {_how_far(result)}{code}; {result.proof or result.said}"
