# SPDX-License-Identifier: GPL-2.0-only
"""Packages of Debian's archive, by name, with apt's own tools and as an ordinary user. Nothing is installed.

    apt-get download PACKAGE...                      into a temporary directory
    dpkg-deb --fsys-tarfile | one member             the file that is wanted

Without a suite the host's package lists serve, as they are. With one (`trixie`, `bookworm-backports`, `sid`),
lists of that suite alone are fetched into a directory of their own and given up afterwards: the host's are
neither needed nor changed. The mirror is the one that the host's apt is set up with.

What a package is good for is `debian.py`'s and `kernels.py`'s business.
"""

import contextlib
import os
import re
import shutil
import subprocess
import tarfile
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Final

from pyhv.errors import EnvironmentProblem
from pyhv.images.progress import Progress

ELSEWHERE: Final = (
    "with files of your own: pyhv boot VMLINUZ --ramdisk INITRAMFS --append console=hvc0 --memory 128"
)
_SUITE_NAME: Final = re.compile(r"[a-z][a-z0-9]*(-backports)?")
_POLL_SECONDS: Final = 0.1
_KEYRING: Final = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
_NO_SECURITY: Final = ("sid", "unstable", "experimental")
"""Suites for which there is no archive of security updates."""
_HEADS_ONLY: Final = ("-o", "Acquire::IndexTargets::deb::Packages::DefaultEnabled=false")
"""Fetch what says when a suite was published, and no list of its packages."""


class Archive:
    """Debian's archive as the host's apt sees it (`suite` None), or one suite of it."""

    def __init__(self, suite: str | None = None, options: tuple[str, ...] = ()) -> None:
        self.suite = suite
        self._options = options

    def depends(self, package: str, pattern: re.Pattern[str]) -> str | None:
        """The last of the newest `package`'s dependencies that matches `pattern` as a whole, if any does."""
        answer = self._run(["apt-cache", "depends", package])
        words = [line.rpartition(" ")[2] for line in answer.splitlines()[1:]]
        return next((word for word in reversed(words) if pattern.fullmatch(word)), None)

    def download(self, packages: list[str], directory: Path, progress: Progress) -> None:
        """`apt-get download`, watched by the size of its files. Raises EnvironmentProblem."""
        for tool in ("apt-get", "dpkg-deb"):
            _require(tool)
        command = ["apt-get", *self._options, "download", *packages]
        uris = self._run(["apt-get", "download", *packages, "--print-uris"], directory)
        total = sum(int(line.split()[2]) for line in uris.splitlines() if len(line.split()) > 3)
        with tempfile.TemporaryFile("w+") as errors:
            process = subprocess.Popen(
                command, cwd=directory, env=_environment(), stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL, stderr=errors,
            )  # fmt: skip
            try:
                while process.poll() is None:
                    progress.transferred(_size_of(directory), total)
                    time.sleep(_POLL_SECONDS)
            finally:
                if process.poll() is None:  # interrupted: do not leave it behind
                    process.terminate()
                    process.wait()
            errors.seek(0)
            if process.returncode:
                raise EnvironmentProblem(_failure(["apt-get", "download", *packages], errors.read()))
        progress.transferred(total, total)

    def _run(self, command: list[str], cwd: Path | None = None) -> str:
        return run_tool([command[0], *self._options, *command[1:]], cwd, shown=command)


@contextlib.contextmanager
def open_archive(
    suite: str | None, scratch: Path, progress: Progress, architecture: str = "amd64"
) -> Iterator[Archive]:
    """The archive; a suite's lists are fetched into `scratch` first and removed in the end.

    Another `architecture` than amd64 needs a suite. Raises EnvironmentProblem.
    """
    if suite is None:
        yield Archive()
        return
    with tempfile.TemporaryDirectory(prefix=".lists-", dir=scratch) as name:
        root = Path(name)
        root.chmod(0o755)  # apt, if run by root, downloads as its own user
        progress.step(f"reading the package lists of {suite}")
        try:
            options = _private_lists(_releases(suite), root, architecture)
        except EnvironmentProblem as cause:
            progress.step(f"trying {suite} without its security updates, because {cause}")
            try:
                options = _private_lists(_releases(suite, security=False), root, architecture)
            except EnvironmentProblem as final:
                raise EnvironmentProblem(f"no package lists of {suite}: {final}") from final
        yield Archive(suite, options)


def source_lines(suite: str) -> list[str]:
    """Lines of sources.list for a suite and its updates. EnvironmentProblem: apt has no mirror of Debian."""
    return _lines(_releases(suite), "amd64")


def published(suite: str, scratch: Path) -> int:
    """When a suite or its updates were published last, in seconds since 1970. Raises EnvironmentProblem."""
    from email.utils import parsedate_to_datetime

    with tempfile.TemporaryDirectory(prefix=".lists-", dir=scratch) as name:
        root = Path(name)
        root.chmod(0o755)  # apt, if run by root, downloads as its own user
        _private_lists(_releases(suite), root, "amd64", _HEADS_ONLY)
        dates = []
        for path in (root / "state" / "lists").glob("*Release"):
            said = re.search(
                r"^Date: (.+)$", path.read_text(encoding="utf-8", errors="replace"), re.MULTILINE
            )
            with contextlib.suppress(ValueError):
                dates += [] if said is None else [int(parsedate_to_datetime(said[1]).timestamp())]
    if not dates:
        raise EnvironmentProblem(f"the archive does not say when {suite} was published")
    return max(dates)


def check_suite(suite: str) -> None:
    """Refuse what cannot be the name of a suite; raises EnvironmentProblem."""
    if not _SUITE_NAME.fullmatch(suite):
        raise EnvironmentProblem(
            f"{suite!r} cannot be a suite of Debian's; its name is like bookworm, trixie-backports or sid"
        )


def _lines(releases: list[tuple[str, str]], architecture: str) -> list[str]:
    trust = f" signed-by={_KEYRING}" if _KEYRING.is_file() else ""
    return [f"deb [arch={architecture}{trust}] {uri} {release} main" for uri, release in releases]


def _private_lists(
    releases: list[tuple[str, str]], root: Path, architecture: str, more: tuple[str, ...] = ()
) -> tuple[str, ...]:
    """apt's options for lists of its own in `root`, which are fetched; of the releases, the first wins."""
    for part in ("state/lists/partial", "cache/archives/partial"):
        (root / part).mkdir(parents=True, exist_ok=True)
    lines = _lines(releases, architecture)
    (root / "sources.list").write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    settings = {
        "Dir::State": root / "state",
        "Dir::Cache": root / "cache",
        "Dir::Etc::SourceList": root / "sources.list",
        "Dir::Etc::SourceParts": "-",
        "Dir::Etc::Preferences": "-",
        "Dir::Etc::PreferencesParts": "-",
        "APT::Default-Release": releases[0][1] if releases[0][1].endswith("-backports") else "",
        "Acquire::Languages": "none",
    }
    options = tuple(word for key, value in settings.items() for word in ("-o", f"{key}={value}"))
    command = ["apt-get", "update", "--error-on=any"]
    run_tool([command[0], *options, *more, *command[1:]], root, shown=command)
    return options


def _releases(suite: str, *, security: bool = True) -> list[tuple[str, str]]:
    """(mirror, release) of what belongs to a suite: itself, what it builds on, its security updates."""
    main, updates = _mirrors()
    base = suite.removesuffix("-backports")
    found = [(main, suite)]
    if suite != base:
        found.append((main, base))
    if security and updates is not None and base not in _NO_SECURITY:
        found.append((updates, f"{base}-security"))
    return found


def _mirrors() -> tuple[str, str | None]:
    """Where the host's apt gets Debian and, if it does, Debian's security updates from."""
    form = "$(ORIGIN)|$(LABEL)|$(REPO_URI)"
    answer = run_tool(["apt-get", "indextargets", "--format", form, "Created-By: Packages"])
    main = security = None
    for line in answer.splitlines():
        origin, label, uri = line.split("|", 2)
        if origin == "Debian" and label == "Debian":
            main = main or uri
        elif origin == "Debian" and label == "Debian-Security":
            security = security or uri
    if main is None:
        raise EnvironmentProblem(
            "apt has no archive of Debian in its sources, so there is no mirror to ask; run 'apt-get update'"
            f" as root with one, or boot {ELSEWHERE}"
        )
    return main, security


def run_tool(command: list[str], cwd: Path | None = None, shown: list[str] | None = None) -> str:
    """Run one of apt's tools and return what it printed; its own message is part of ours if it fails."""
    _require(command[0])
    done = subprocess.run(
        command, cwd=cwd, env=_environment(), stdin=subprocess.DEVNULL, capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    if done.returncode:
        raise EnvironmentProblem(_failure(shown or command, done.stderr))
    return done.stdout


def _environment() -> dict[str, str]:
    return os.environ | {"LC_ALL": "C"}


def _require(tool: str) -> None:
    if shutil.which(tool) is None:
        raise EnvironmentProblem(
            f"{tool} is not installed, and Debian's packages are fetched with it: use a Debian system, or"
            f" boot {ELSEWHERE}"
        )


def _failure(command: list[str], stderr: str) -> str:
    lines = [line.removeprefix("E: ") for line in stderr.splitlines() if line.startswith("E: ")]
    reason = lines[0] if lines else stderr.strip().rpartition("\n")[2] or "no reason given"
    hint = ""
    if "Unable to locate package" in reason or "No packages found" in reason:
        hint = "; run 'apt-get update' as root first"
    elif command[:2] == ["apt-get", "download"]:
        hint = "; check the network, or boot " + ELSEWHERE
    return f"'{' '.join(command[:3])}' failed: {reason.rstrip('.')}{hint}"


def _size_of(directory: Path) -> int:
    total = 0
    for path in directory.rglob("*"):
        with contextlib.suppress(OSError):  # apt renames its files meanwhile
            total += path.lstat().st_size if path.suffix == ".deb" and path.is_file() else 0
    return total


def only_package(directory: Path, prefix: str) -> Path:
    """The downloaded package whose file name begins with `prefix`."""
    found = sorted(directory.glob(f"{prefix}*.deb"))
    if not found:
        raise EnvironmentProblem(f"apt-get download left no {prefix}*.deb behind; try again")
    return found[-1]


def extract(package: Path, member: re.Pattern[str], target: Path) -> None:
    """Copy the one regular file that matches `member` out of a .deb. Raises EnvironmentProblem."""
    with _file_tree(package) as stream:
        try:
            with tarfile.open(fileobj=stream, mode="r|") as archive:
                for entry in archive:
                    source = archive.extractfile(entry) if entry.isreg() else None
                    if source is not None and member.fullmatch(entry.name):
                        with target.open("wb") as file:
                            shutil.copyfileobj(source, file)
                        return
        except tarfile.TarError as cause:
            raise EnvironmentProblem(f"{package.name}: dpkg-deb cannot unpack it ({cause})") from cause
    raise EnvironmentProblem(f"{package.name}: holds no file like {member.pattern}, so it is of no use")


def members(package: Path, member: re.Pattern[str]) -> Iterator[tuple[str, bytes]]:
    """The regular files of a .deb whose names match `member`, in its order. Raises EnvironmentProblem."""
    with _file_tree(package) as stream:
        try:
            with tarfile.open(fileobj=stream, mode="r|") as archive:
                for entry in archive:
                    source = archive.extractfile(entry) if entry.isreg() else None
                    if source is not None and member.fullmatch(entry.name):
                        yield entry.name, source.read()
        except tarfile.TarError as cause:
            raise EnvironmentProblem(f"{package.name}: dpkg-deb cannot unpack it ({cause})") from cause


@contextlib.contextmanager
def _file_tree(package: Path) -> Iterator[IO[bytes]]:
    """The package's files as a tar stream; dpkg-deb is stopped once nobody reads on."""
    process = subprocess.Popen(
        ["dpkg-deb", "--fsys-tarfile", str(package)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    assert process.stdout is not None
    try:
        yield process.stdout
    finally:
        process.stdout.close()
        process.terminate()
        process.wait()


def publish(ready: Path, target: Path, *, is_complete: bool) -> None:
    """Rename the finished directory `ready` to `target`, replacing one that is not complete.

    Another process that was faster has won, and what it fetched is as good.
    """
    if target.exists() and not is_complete:
        shutil.rmtree(target)
    try:
        ready.rename(target)
    except OSError:
        if not target.is_dir():
            raise
