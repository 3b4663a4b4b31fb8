# SPDX-License-Identifier: GPL-2.0-only
"""The commands as a person meets them: output, messages, exit codes."""

import gzip
import json
import os
import pty
import re
import signal
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Protocol

import click
import pytest
from click.testing import CliRunner, Result
from hypothesis import given
from hypothesis import strategies as st

from pyhv import __version__
from pyhv.cli import session
from pyhv.cli.boot import domain_names
from pyhv.cli.main import main
from pyhv.errors import ExitCode, PyhvError
from pyhv.images import debian


class Invoke(Protocol):
    """Runs the command line with these arguments."""

    def __call__(self, *arguments: object) -> Result: ...


@pytest.fixture
def run() -> Invoke:
    def invoke(*arguments: object) -> Result:
        return CliRunner().invoke(main, [str(argument) for argument in arguments])

    return invoke


@pytest.fixture
def other_command() -> Iterator[Callable[[str, Callable[[], object]], None]]:
    """Add a command to `pyhv` for a test."""
    added = []

    def add(name: str, function: Callable[[], object]) -> None:
        main.add_command(click.Command(name, callback=function))
        added.append(name)

    yield add
    for name in added:
        del main.commands[name]


class TestBoundary:
    def test_version_and_help(self, run: Invoke) -> None:
        assert run("--version").stdout == f"pyhv {__version__}\n"
        assert "pyhv boot debian" in run("--help").stdout
        for name in ("boot", "inspect", "build", "fetch", "image", "doctor"):
            result = run(name, "--help")
            assert result.exit_code == 0
            assert "Examples:" in result.stdout

    def test_help_names_every_exit_code(self, run: Invoke) -> None:
        text = run("boot", "--help").stdout
        for code in ExitCode:
            assert re.search(rf"^ +{code.value} ", text, re.MULTILINE), code
        assert "standard output has gone" in text

    def test_help_is_light(self) -> None:
        """Nothing that takes long to import is imported for help."""
        script = (
            "import sys; from pyhv.cli.main import main\n"
            "try: main(['boot', '--help'])\n"
            "except SystemExit: pass\n"
            "heavy = {'unicorn', 'numpy', 'capstone', 'keystone', 'rich', 'elftools'} & set(sys.modules)\n"
            "sys.exit(str(heavy) if heavy else 0)"
        )
        subprocess.run([sys.executable, "-c", script], check=True, stdout=subprocess.DEVNULL)

    def test_a_small_guest_needs_little(self, tmp_path: Path) -> None:
        """Nothing is imported for a guest of pyhv's own, once it is in the cache, that only others need."""
        script = (
            "import sys; from pyhv.cli.main import main\n"
            "try: main(['boot', 'hello', '--virtual-time'])\n"
            "except SystemExit as end: assert end.code == 0, end.code\n"
            "heavy = {'unicorn', 'capstone', 'keystone', 'rich', 'subprocess', 'tarfile', 'lzma', 'lz4',\n"
            "    'zstandard', 'msgpack', 'fractions', 'pyhv.snapshot.snapshot'} & set(sys.modules)\n"
            "sys.exit(str(heavy) if heavy and sys.argv[1] == 'again' else 0)"
        )
        environment = os.environ | {"XDG_CACHE_HOME": str(tmp_path)}
        for which in ("first", "again"):
            command = [sys.executable, "-c", script, which]
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env=environment)

    @pytest.mark.promise("E-1")
    @pytest.mark.parametrize(
        "error", [PyhvError("what, where, how"), KeyboardInterrupt(), ZeroDivisionError("x")]
    )
    def test_errors_become_codes(
        self, run: Invoke, other_command: Callable[[str, Callable[[], object]], None], error: BaseException
    ) -> None:
        def fail() -> None:
            raise error

        other_command("fail", fail)
        result = run("fail")
        if isinstance(error, PyhvError):
            assert (result.exit_code, result.stderr) == (ExitCode.ENVIRONMENT, "pyhv: what, where, how\n")
        elif isinstance(error, KeyboardInterrupt):
            assert result.exit_code == ExitCode.INTERRUPTED
        else:
            assert result.exit_code == ExitCode.BUG
            assert "ZeroDivisionError: x" in result.stderr
            assert "report" in result.stderr
            assert "Traceback" not in result.stderr

    def test_verbose_shows_the_traceback(self, run: Invoke, monkeypatch: pytest.MonkeyPatch) -> None:
        def fail(_plan: object) -> None:
            raise ZeroDivisionError("x")

        monkeypatch.setattr(session, "run", fail)
        assert "Traceback" not in run("boot", "hello").stderr
        assert "Traceback" in run("boot", "hello", "-v").stderr


class TestUsage:
    @pytest.mark.promise("E-3")
    @pytest.mark.parametrize(
        "arguments",
        [
            ("--scheduler", "fifo"),
            ("--console", "serial"),
            ("--console", "file:"),
            ("--timeout", "0"),
            ("--weight", "0"),
            ("--cap", "101"),
            ("--count", "0"),
            ("--verdict", "ktest"),
            ("--digest", "x"),
            ("--name", "a b"),
            ("--no-such-option",),
        ],
    )
    def test_refused(self, run: Invoke, arguments: tuple[str, ...]) -> None:
        result = run("boot", "hello", *arguments)
        assert result.exit_code == ExitCode.USAGE
        assert result.stdout == ""

    @pytest.mark.promise("E-3")
    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (("nosuch",), "nosuch: there is no such file"),
            (("./hello",), "./hello: cannot be read"),
            ((sys.executable,), "Xen"),
            (("hello", "--ramdisk", "/nowhere/x"), "/nowhere/x: the ramdisk cannot be read"),
            (("hello", "--trace", "/nowhere/x"), "/nowhere/x: cannot be created for the trace"),
            (("hello", "--console", "file:/nowhere/x"), "/nowhere/x: cannot be created"),
            (("hello", "--memory", "1"), "MiB"),
            (("hello", "--memory", "0"), "is not possible"),
            (("hello", "--memory", "-5"), "is not possible"),
            (("hello", "--memory", "99999999"), "is not possible"),
        ],
    )
    def test_environment(self, run: Invoke, arguments: tuple[str, ...], message: str) -> None:
        result = run("boot", *arguments)
        assert result.exit_code == ExitCode.ENVIRONMENT, result.output
        assert message in result.stderr
        assert result.stderr.count("\n") == 1

    @pytest.mark.parametrize("command", ["boot", "inspect"])
    def test_an_empty_ramdisk_is_a_mistake(self, run: Invoke, tmp_path: Path, command: str) -> None:
        (tmp_path / "nothing").touch()
        result = run(command, "hello", "--ramdisk", tmp_path / "nothing")
        assert result.exit_code == ExitCode.ENVIRONMENT
        assert "nothing: the ramdisk is empty" in result.stderr
        assert result.stderr.count("\n") == 1
        assert result.stdout == ""

    def test_debian_without_apt(self, run: Invoke, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
        monkeypatch.setenv("PATH", str(tmp_path))
        result = run("fetch", "debian")
        assert result.exit_code == ExitCode.ENVIRONMENT
        assert "apt-cache is not installed" in result.stderr


class TestBoot:
    def test_one_guest_owns_standard_output(self, run: Invoke) -> None:
        result = run("boot", "hello", "--append", "one two")
        assert result.exit_code == 0
        assert "one two" in result.stdout
        assert result.stdout.endswith("SUCCESS\n")
        assert result.stderr == ""

    def test_several_guests_share_it(self, run: Invoke) -> None:
        result = run("boot", "hello", "--count", 2)
        assert result.exit_code == 0
        assert {line.split("| ")[0] for line in result.stdout.splitlines()} == {"hello-1", "hello-2"}

    def test_names(self, run: Invoke) -> None:
        result = run("boot", "hello", "pages", "--name", "x")
        assert {line.split("| ")[0] for line in result.stdout.splitlines()} == {"x-1", "x-2"}

    def test_console_elsewhere(self, run: Invoke, tmp_path: Path) -> None:
        assert run("boot", "hello", "--console", "none").stdout == ""
        log = tmp_path / "log"
        assert run("boot", "hello", "--console", f"file:{log}").stdout == ""
        assert log.read_bytes().endswith(b"SUCCESS\n")

    @pytest.mark.promise("T-1")
    def test_the_digest_is_of_the_run(self, run: Invoke, tmp_path: Path) -> None:
        def digest(*more: object) -> str:
            assert run("boot", "pages", "--virtual-time", "--digest", tmp_path / "d", *more).exit_code == 0
            return (tmp_path / "d").read_text()

        first = digest()
        assert digest() == first
        assert digest("--memory", 17) != first
        assert int(first.split()[1]) > 10

    def test_trace_and_statistics(self, run: Invoke, tmp_path: Path) -> None:
        result = run("boot", "pages", "--trace", tmp_path / "t", "--stats", "--virtual-time")
        lines = [json.loads(line) for line in (tmp_path / "t").read_text().splitlines()]
        assert {"hypercall", "page_fault"} <= {line["kind"] for line in lines}
        assert any(line["name"] == "mmu_update" for line in lines)
        assert "guest code executed" in result.stderr
        assert f"{len(lines)} │" in result.stderr  # the table's number of exits
        assert result.stdout.endswith("SUCCESS\n")

    def test_a_test_without_a_result_has_failed(self, run: Invoke) -> None:
        result = run("boot", "hello", "--verdict", "xtf")
        assert result.exit_code == ExitCode.FAILURE
        assert "Test result" in result.stderr

    def test_ping_needs_pong(self, run: Invoke) -> None:
        result = run("boot", "ping", "--virtual-time")  # it waits for a while
        assert result.exit_code == ExitCode.FAILURE
        assert result.stderr.startswith("pyhv: ping reported a failure: ")
        assert run("boot", "ping", "pong").exit_code == 0

    def test_verbose(self, run: Invoke) -> None:
        result = run("boot", "hello", "-v")
        assert "domain 1 is hello" in result.stderr
        assert "hello powered off" in result.stderr

    def test_a_reader_that_goes_away_ends_the_run(self) -> None:
        """`pyhv boot | head -1`"""
        process = subprocess.Popen(
            [sys.executable, "-m", "pyhv.cli.main", "boot", "pages"],
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip
        assert process.stdout is not None
        process.stdout.close()
        _, errors = process.communicate(timeout=30)
        assert (process.returncode, errors) == (ExitCode.INTERRUPTED, b"")


SOURCES = {
    "deadlock": """
    print "going to sleep\\n"
    push 0
    push 0
    push 0
forever:
    mov edi, 3
    mov rsi, rsp
    hypercall sched_op
    jmp forever
""",
    "spin": """
spin:
    jmp spin
""",
    "crash": """
    xor esp, esp
    ud2
""",
    "halt": """
    mov edi, 2                                  # VCPUOP_down of the only vCPU
    xor esi, esi
    hypercall vcpu_op
""",
} | {
    f"end{reason}": f"""
    push {reason}
    mov edi, 2                                  # SCHEDOP_shutdown
    mov rsi, rsp
    hypercall sched_op
"""
    for reason in (0, 1, 2, 3, 4, 5, 77)
}
WRITE = """
    xor edi, edi                                # CONSOLEIO_write
    mov esi, 15
    lea rdx, [rip + words]
    hypercall console_io
.data
words:
    .ascii "BUG at"
    .byte 0x1b
    .ascii "[1m top\\n"
.text
"""
for name in ("crash", "halt", "end0", "end1", "spin", "deadlock"):
    SOURCES[f"early-{name}"] = WRITE + SOURCES[name]


@pytest.fixture(scope="module")
def kernels(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Guests that end badly, built with `pyhv build`."""
    from pyhv.guests.catalogue import source_of

    directory: Path = tmp_path_factory.mktemp("kernels")
    hello = source_of("hello").read_text()
    images = {}
    for name, body in SOURCES.items():
        head, _, tail = hello.partition("\n    succeed")
        assert tail, "the hello guest no longer ends in `succeed`"
        source = directory / f"{name}.S"
        source.write_text(f"{head}\n    {body}\n    succeed{tail}")
        result = CliRunner().invoke(main, ["build", str(source), "-o", str(directory / f"{name}.img")])
        assert result.exit_code == 0, result.output
        images[name] = directory / f"{name}.img"
    return images


class TestBadEnds:
    @pytest.mark.promise("E-1")
    def test_crash(self, run: Invoke, kernels: dict[str, Path]) -> None:
        result = run("boot", kernels["crash"], "--memory", 16)
        assert result.exit_code == ExitCode.CRASH
        assert result.stderr.startswith("pyhv: Domain 1 (crash) crashed at ")
        assert "ud2" in result.stderr
        assert "hypercall_page+" in result.stderr  # a symbol

    @pytest.mark.promise("E-1")
    @pytest.mark.parametrize(
        ("reason", "code", "said"),
        [
            (0, ExitCode.OK, ""),
            (1, ExitCode.ENDED, "pyhv: end1 asked for a reboot, which ended its run\n"),
            (2, ExitCode.ENDED, "pyhv: end2 has suspended itself, and nobody is there to resume it\n"),
            (3, ExitCode.CRASH, "the guest reported a crash"),
            (4, ExitCode.CRASH, "pyhv: end4 crashed: it said so itself\n"),
            (5, ExitCode.ENDED, "pyhv: end5 asked for a soft reset, which ended its run\n"),
            (77, ExitCode.FAILURE, "pyhv: end77 ended itself: reason 77, which is none of Xen's\n"),
        ],
    )
    def test_only_a_power_off_is_a_success(
        self, run: Invoke, kernels: dict[str, Path], reason: int, code: ExitCode, said: str
    ) -> None:
        result = run("boot", kernels[f"end{reason}"], "--memory", 16)
        assert result.exit_code == code
        assert said in result.stderr if said else result.stderr == ""

    def test_a_kernel_that_halts_for_good_has_not_powered_off(
        self, run: Invoke, kernels: dict[str, Path]
    ) -> None:
        """Its last vCPU goes down, as Linux' does after an early panic; Xen ends the domain for that."""
        result = run("boot", kernels["halt"], "--memory", 16)
        assert result.exit_code == ExitCode.CRASH
        assert "halted for good: its last vCPU went down" in result.stderr
        assert "hypercall_page+" in result.stderr

    @pytest.mark.parametrize("name", ["crash", "halt", "end1", "spin", "deadlock"])
    def test_the_last_words_on_the_hypervisors_console(
        self, run: Invoke, kernels: dict[str, Path], name: str
    ) -> None:
        """All that there is of a kernel that dies before it has a console; they cannot steer the terminal."""
        path = kernels[f"early-{name}"]
        arguments = ("boot", path, "--memory", 16, "--virtual-time", "--timeout", 0.01)
        result = run(*arguments)
        assert result.exit_code != ExitCode.OK
        words = f"pyhv: last lines of early-{name} on the hypervisor's console:\n  BUG at\\x1b[1m top\n"
        assert result.stderr.endswith(words)
        assert run(*arguments, "-v").stderr.count("BUG at") == 1, "-v has shown them already"

    def test_a_guest_that_powers_off_needs_no_last_words(self, run: Invoke, kernels: dict[str, Path]) -> None:
        result = run("boot", kernels["early-end0"], "--memory", 16)
        assert (result.exit_code, result.stderr) == (ExitCode.OK, "")

    @pytest.mark.promise("E-1")
    def test_deadlock(self, run: Invoke, kernels: dict[str, Path]) -> None:
        result = run("boot", kernels["deadlock"], "--memory", 16, "--virtual-time", "--timeout", 5)
        assert result.exit_code == ExitCode.DEADLOCK, result.output
        assert "deadlock: deadlock wait" in result.stderr

    def test_deadlock_after_the_input_has_ended(self, kernels: dict[str, Path]) -> None:
        done = subprocess.run(
            [sys.executable, "-m", "pyhv.cli.main", "boot", str(kernels["deadlock"]), "--timeout", "5"],
            stdin=subprocess.DEVNULL, capture_output=True, timeout=30, check=False,
        )  # fmt: skip
        assert done.returncode == ExitCode.DEADLOCK, done.stderr

    @pytest.mark.promise("E-1")
    def test_timeout(self, run: Invoke, kernels: dict[str, Path]) -> None:
        result = run("boot", kernels["spin"], "--memory", 16, "--virtual-time", "--timeout", 0.01)
        assert result.exit_code == ExitCode.TIMEOUT
        assert "still running: spin" in result.stderr

    @pytest.mark.promise("E-2")
    def test_the_gravest_guest_decides(self, run: Invoke, kernels: dict[str, Path]) -> None:
        arguments = ("--memory", 16, "--virtual-time", "--timeout", 0.1)
        assert run("boot", "hello", kernels["spin"], kernels["crash"], *arguments).exit_code == ExitCode.CRASH
        assert run("boot", "hello", kernels["spin"], *arguments).exit_code == ExitCode.TIMEOUT

    @pytest.mark.promise("E-1")
    @pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
    @pytest.mark.parametrize("guest", ["spin", "deadlock"])
    def test_signals(self, kernels: dict[str, Path], number: int, guest: str) -> None:
        """Also of a guest that sleeps and waits for input. (Whoever ran the tests may ignore signals.)"""
        reader, writer = os.pipe()
        process = subprocess.Popen(
            ["env", "--default-signal", sys.executable, "-m", "pyhv.cli.main", "boot", str(kernels[guest]),
             "-v", "--stats"],
            stdin=reader, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip
        assert process.stdout is not None
        process.stdout.read(1)  # it runs
        time.sleep(0.1)
        process.send_signal(number)
        try:
            _, errors = process.communicate(timeout=30)
        finally:
            process.kill()
        assert process.returncode == 128 + number, errors.decode()
        assert b"statistics" in errors  # an orderly end
        os.close(reader)
        os.close(writer)

    def test_leaving_at_a_terminal(self, kernels: dict[str, Path]) -> None:
        """Ctrl-C is the guest's, Ctrl-] is ours."""
        pid, master = pty.fork()
        if pid == 0:
            command = [sys.executable, "-m", "pyhv.cli.main", "boot", str(kernels["spin"])]
            os.execv(sys.executable, command)
        output = b""
        while b"command line" not in output:  # the guest's last words
            output += os.read(master, 4096)
        assert b"pyhv: Ctrl-] leaves\r\n" in output
        os.write(master, b"\x03")
        time.sleep(0.2)
        assert os.waitpid(pid, os.WNOHANG) == (0, 0)
        os.write(master, b"\x1d")
        _, status = os.waitpid(pid, 0)
        assert os.waitstatus_to_exitcode(status) == ExitCode.INTERRUPTED
        assert termios.tcgetattr(master)[3] & termios.ICANON
        os.close(master)


RAMDISK_READER = """
.include "xen.inc"
.include "kernel.inc"
.text
_start:
    kernel_entry
    mov rbx, [rip + start_info]
    mov rdi, [rbx + START_INFO_mod_start]
    call puts
    succeed
"""


class TestRamdisk:
    """What a guest finds at start_info's mod_start."""

    @pytest.fixture
    def reader(self, run: Invoke, tmp_path: Path) -> Path:
        (tmp_path / "reader.S").write_text(RAMDISK_READER)
        assert run("build", tmp_path / "reader.S", "-o", tmp_path / "reader.img").exit_code == 0
        return tmp_path / "reader.img"

    def test_gzip_is_unpacked_for_the_guest(self, run: Invoke, reader: Path, tmp_path: Path) -> None:
        (tmp_path / "disk").write_bytes(gzip.compress(b"what is inside\n"))
        result = run("boot", reader, "--ramdisk", tmp_path / "disk")
        assert result.stdout == "what is inside\nSUCCESS\n"
        assert "gzip, unpacked" in run("inspect", reader, "--ramdisk", tmp_path / "disk").stdout

    def test_unless_it_is_to_stay_raw(self, run: Invoke, reader: Path, tmp_path: Path) -> None:
        packed = gzip.compress(b"what is inside\n")
        (tmp_path / "disk").write_bytes(packed)
        result = run("boot", reader, "--ramdisk", tmp_path / "disk", "--ramdisk-raw")
        assert result.stdout_bytes.startswith(packed[:3])
        shown = run("inspect", reader, "--ramdisk", tmp_path / "disk", "--ramdisk-raw").stdout
        assert "left to the guest as asked for" in shown

    def test_plain_ones_are_as_they_were(self, run: Invoke, reader: Path, tmp_path: Path) -> None:
        (tmp_path / "disk").write_bytes(b"plain\n\0")
        assert run("boot", reader, "--ramdisk", tmp_path / "disk").stdout == "plain\nSUCCESS\n"


class TestInspectAndBuild:
    def test_inspect_says_yes(self, run: Invoke) -> None:
        result = run("inspect", "hello")
        assert result.exit_code == 0
        assert "Layout in 16 MiB" in result.stdout
        assert "yes" in result.stdout

    def test_inspect_says_no(self, run: Invoke, tmp_path: Path) -> None:
        result = run("inspect", sys.executable)
        assert result.exit_code == ExitCode.ENVIRONMENT
        assert "no" in result.stdout.split("Can it boot?")[1]
        (tmp_path / "text").write_text("no kernel")
        assert run("inspect", tmp_path / "text").exit_code == ExitCode.ENVIRONMENT

    def test_inspect_with_too_little_memory(self, run: Invoke, tmp_path: Path) -> None:
        (tmp_path / "big").write_bytes(bytes(1 << 21))
        result = run("inspect", "hello", "--memory", 1, "--ramdisk", tmp_path / "big")
        assert result.exit_code == ExitCode.ENVIRONMENT
        assert "does not fit" in result.stdout

    def test_build_names_the_image_after_its_source(
        self, run: Invoke, kernels: dict[str, Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        monkeypatch.chdir(tmp_path)
        assert run("build", kernels["spin"].with_suffix(".S")).exit_code == 0
        assert (tmp_path / "spin.img").read_bytes() == kernels["spin"].read_bytes()

    def test_build_tells_where_the_mistake_is(self, run: Invoke, tmp_path: Path) -> None:
        (tmp_path / "bad.S").write_text(".text\n_start:\n    mov rax, [\n")
        result = run("build", tmp_path / "bad.S", "-o", tmp_path / "x")
        assert result.exit_code == ExitCode.ENVIRONMENT
        assert "bad.S:3" in result.stderr
        assert not (tmp_path / "x").exists()
        result = run("build", tmp_path / "missing.S")
        assert result.exit_code == ExitCode.ENVIRONMENT

    def test_build_to_nowhere(self, run: Invoke, kernels: dict[str, Path]) -> None:
        result = run("build", kernels["spin"].with_suffix(".S"), "-o", "/nowhere/x")
        assert result.exit_code == ExitCode.ENVIRONMENT
        assert "/nowhere/x" in result.stderr


def test_fetch_prints_two_paths(run: Invoke, monkeypatch: pytest.MonkeyPatch) -> None:
    files = debian.DebianFiles(Path("/c/vmlinuz"), Path("/c/vmlinux"), Path("/c/initramfs"), "6")
    monkeypatch.setattr(debian, "ensure", lambda progress, **how: files)
    assert run("fetch", "debian").stdout == "/c/vmlinuz\n/c/initramfs\n"


class TestDomainNames:
    def test_examples(self) -> None:
        assert domain_names(["a", "b"]) == ["a", "b"]
        assert domain_names(["a", "a", "a-1"]) == ["a-2", "a-3", "a-1"]
        assert domain_names(["my kernel", ""]) == ["my_kernel", "guest"]

    @given(st.lists(st.one_of(st.text(max_size=80), st.sampled_from(["a", "a-1", "a-2"])), max_size=12))
    def test_unique_and_clean(self, wanted: list[str]) -> None:
        names = domain_names(wanted)
        assert len(set(names)) == len(names) == len(wanted)
        assert all(0 < len(name) <= 64 and name.isascii() and "|" not in name for name in names)


def test_options_for_kernels_that_are_not_fetched_are_refused(run: Invoke) -> None:
    for arguments in (["boot", "hello", "--flavour", "rt"], ["fetch", "pv-grub", "--flavour", "rt"]):
        assert "--flavour is for debian" in run(*arguments).stderr
    assert "--suite is for kernels that are fetched" in run("boot", "hello", "--suite", "sid").stderr


def test_fetch_passes_on_what_is_wanted(run: Invoke, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = {}
    files = debian.DebianFiles(Path("/c/vmlinuz"), Path("/c/vmlinux"), Path("/c/initramfs"), "6")
    monkeypatch.setattr(debian, "ensure", lambda progress, **how: asked.update(how) or files)
    run("fetch", "debian", "--flavour", "rt", "--suite", "sid", "--update")
    assert asked == {"flavour": "rt", "suite": "sid", "update": True}
