# SPDX-License-Identifier: GPL-2.0-only
"""A complete Debian on a disk image, made as an ordinary user and without a boot loader's installation.

    mmdebstrap          packages of a suite, installed in a namespace of its own    ──► a stream of files
    tar, mke2fs -d      in a user namespace too, so that files are root's there     ──► ext4
    inode_times.py      the same inputs, the same bytes

The image is one ext4 file system and has no partition table: PV-GRUB and pygrub look for /boot/grub/grub.cfg
on a whole disk as well as on a partition, and e2fsck, mount, debugfs and resize2fs take the file as it is.
Its features are said one by one and not left to the host's mke2fs: GRUB 2.06 refuses those that it does not
know.

All times are those of the archive: SOURCE_DATE_EPOCH, or when the suite was published last.
"""

import contextlib
import os
import re
import shutil
import subprocess
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Final

from pyhv.cache import cache_directory, digest
from pyhv.errors import ConfigError, EnvironmentProblem
from pyhv.frozen import frozen
from pyhv.images import archive, debian, debian_root
from pyhv.images.inode_times import settle_times
from pyhv.images.progress import Progress

LEAST_SIZE: Final = 512 << 20
"""Bytes; less holds no Debian with a kernel."""
_MOST_SIZE: Final = 16 << 40
_NEEDED: Final = 2 << 30
"""Bytes that have to be free: for the files, and for them once more in the image."""
_FEATURES: Final = (
    "none,has_journal,ext_attr,resize_inode,dir_index,filetype,extent,64bit,flex_bg,sparse_super,large_file,"
    "huge_file,dir_nlink,extra_isize,metadata_csum"
)
_BLOCK, _INODE, _BYTES_PER_INODE = 4096, 256, 16384
_HOSTNAME: Final = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")
_PACKAGE: Final = re.compile(r"[a-z0-9][a-z0-9+.-]+")
_NAMESPACE: Final = uuid.UUID("5b0ad8a8-4c2b-5ad5-9d0c-1c3f5b6f9a11")
_SYSTEM_PATHS: Final = "/usr/local/sbin:/usr/sbin:/sbin:/usr/bin:/bin"


@frozen(kw_only=True)
class DebianImage:
    """What to make. `size` in bytes; a password of None and no key is an empty password, for the console."""

    suite: str = "bookworm"
    flavour: str = debian.STOCK
    size: int = 2 << 30
    packages: tuple[str, ...] = ()
    hostname: str = "debian"
    root_password: str | None = None
    ssh_key: str | None = None
    """Lines of authorized_keys."""

    def check(self) -> None:
        """ConfigError: no image can be made of that."""
        archive.check_suite(self.suite)
        if not LEAST_SIZE <= self.size <= _MOST_SIZE or self.size % _BLOCK:
            raise ConfigError(
                f"An image of {self.size} bytes is not possible: from {LEAST_SIZE >> 20}M on, in whole blocks"
                f" of {_BLOCK} bytes."
            )
        if not _HOSTNAME.fullmatch(self.hostname):
            raise ConfigError(
                f"{self.hostname!r} is no host name; lower-case letters, digits and - make one."
            )
        for package in self.packages:
            if not _PACKAGE.fullmatch(package):
                raise ConfigError(f"{package!r} cannot be the name of a package of Debian's.")

    def recipe(self, born: int) -> str:
        """A name for what the image is made of."""
        said = (
            self.suite, self.flavour, str(self.size), " ".join(sorted(self.packages)), self.hostname,
            self.root_password or "", "" if self.root_password is None else "password", self.ssh_key or "",
            str(born),
        )  # fmt: skip
        return digest(*(part.encode() for part in said))


def default_path(name: str) -> Path:
    """Where an image is that was not to be elsewhere."""
    return cache_directory() / "images" / f"{name}.img"


def create(wanted: DebianImage, target: Path, progress: Progress) -> None:
    """Make the image; `target` appears when it is complete, and replaces what was there.

    Raises ConfigError for what cannot be made, EnvironmentProblem if a tool, the network or room lacks.
    """
    wanted.check()
    for tool, package in (("mmdebstrap", "mmdebstrap"), ("mke2fs", "e2fsprogs"), ("tar", "tar")):
        _require(tool, package)
    if os.geteuid() != 0:
        _require("newuidmap", "uidmap")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".pyhv-image-", dir=target.parent) as name:
            scratch = Path(name)
            scratch.chmod(0o755)  # the user of the namespace is another one
            for place in (target.parent, Path(tempfile.gettempdir())):  # mmdebstrap works in the latter
                _check_room(place)
            _create_in(scratch, wanted, target, progress)
    except OSError as cause:
        raise EnvironmentProblem(f"{target}: cannot be made ({cause.strerror or cause})") from cause


def _create_in(scratch: Path, wanted: DebianImage, target: Path, progress: Progress) -> None:
    progress.step(f"asking when {wanted.suite} was published")
    born = published(wanted.suite, scratch)
    identity = str(uuid.uuid5(_NAMESPACE, wanted.recipe(born)))
    tree = scratch / "tree"
    devices = tree / "dev"
    for directory in (tree, devices):  # mmdebstrap leaves the latter out, where it can make no devices
        directory.mkdir()
        directory.chmod(0o755)
    os.utime(devices, (born, born))
    try:
        _install(wanted, identity, born, scratch, tree, progress)
        progress.step("writing the file system")
        made = scratch / "image"
        make_ext4(tree, made, wanted.size, identity, "debian", born)
    finally:
        _run_as_root(["rm", "-rf", str(tree)], "the unpacked files cannot be removed")
    os.replace(made, target)


def published(suite: str, scratch: Path) -> int:
    """The time of all files of an image: SOURCE_DATE_EPOCH, or when the archive was published last."""
    told = os.environ.get("SOURCE_DATE_EPOCH", "")
    if told:
        if not told.isascii() or not told.isdigit() or int(told) >= 1 << 32:
            raise EnvironmentProblem(f"SOURCE_DATE_EPOCH={told!r} is no number of seconds since 1970")
        return int(told)
    return archive.published(suite, scratch)


# -- mmdebstrap ---------------------------------------------------------------------------------------------


def _install(
    wanted: DebianImage, identity: str, born: int, scratch: Path, tree: Path, progress: Progress
) -> None:
    """Have the packages installed, and their files put into `tree`."""
    early, late = scratch / "early.tar", scratch / "late.tar"
    early.write_bytes(debian_root.archive_of(debian_root.before_packages(), born))
    files = debian_root.after_packages(wanted.hostname, identity, wanted.ssh_key)
    late.write_bytes(debian_root.archive_of(files, born))
    suffix = "amd64" if wanted.flavour == debian.STOCK else f"{wanted.flavour}-amd64"
    packages = [f"linux-image-{suffix}", *debian_root.PACKAGES, *wanted.packages]
    command = [
        "mmdebstrap", f"--mode={'root' if os.geteuid() == 0 else 'unshare'}", "--variant=important",
        "--architectures=amd64", "--format=tar", f"--include={','.join(packages)}",
        "--skip=output/dev",
        '--aptopt=Acquire::Languages "none"', '--aptopt=Acquire::Retries "3"',
        f"--essential-hook=tar-in {_quoted(early)} /",
        f"--customize-hook=tar-in {_quoted(late)} /",
        f"--customize-hook={_LAST_HOOK}",
        wanted.suite, "-", *archive.source_lines(wanted.suite),
    ]  # fmt: skip
    environment = os.environ | {
        "LC_ALL": "C", "SOURCE_DATE_EPOCH": str(born), "PATH": _path(),
        "PYHV_ROOT": "root:" + _password_hash(wanted.root_password, identity),
    }  # fmt: skip
    unpack = [
        *_namespace(), "tar", "--extract", "--file=-", f"--directory={tree}", "--numeric-owner",
        "--preserve-permissions", "--same-owner", "--xattrs", "--xattrs-include=*",
    ]  # fmt: skip
    with _running(unpack, stdin=subprocess.PIPE) as sink:
        assert sink.stdin is not None
        with _running(command, stdout=sink.stdin, env=environment) as source:
            sink.stdin.close()
            problem = _follow(source, progress)
            failed = source.wait() != 0
        assert sink.stderr is not None
        said = sink.stderr.read()
        if sink.wait() and not problem:
            raise EnvironmentProblem(f"the installed files cannot be unpacked: {_last_line(said)}")
        if failed:
            raise EnvironmentProblem(f"mmdebstrap failed: {problem or 'it does not say why'}")


_LAST_HOOK: Final = (
    'printf "%s\\n" "$PYHV_ROOT" | chroot "$1" chpasswd --encrypted'
    f' && chroot "$1" systemctl enable {" ".join(debian_root.ENABLED)}'
    f' && chroot "$1" systemctl disable {" ".join(debian_root.DISABLED)}'
    ' && rm -f "$1"/etc/ssh/ssh_host_*_key "$1"/etc/ssh/ssh_host_*_key.pub'
    ' "$1"/var/cache/ldconfig/aux-cache "$1"/var/lib/systemd/random-seed "$1"/var/lib/dbus/machine-id'
    ' && find "$1"/var/log -type f -exec truncate -s 0 {} +'
)
"""What is done last: root's password, services, and without what is of this one installation."""


def _password_hash(password: str | None, identity: str) -> str:
    """A password as in /etc/shadow, with a salt that is the image's; empty if there is none."""
    if password is None:
        return ""
    salt = identity.replace("-", "")[:16]
    script = "chomp(my $word = <STDIN>); print crypt($word, $ARGV[0]);"
    done = subprocess.run(  # mmdebstrap is written in Perl, so it is there
        ["perl", "-e", script, f"$6${salt}$"], input=password, capture_output=True, text=True, check=False
    )
    if done.returncode or not done.stdout.startswith("$6$"):
        raise EnvironmentProblem(f"the password cannot be hashed: {_last_line(done.stderr)}")
    return done.stdout


def _follow(process: "subprocess.Popen[str]", progress: Progress) -> str:
    """Tell how far mmdebstrap is; the first that it says is wrong, or nothing."""
    wrong = ""
    assert process.stderr is not None
    for line in process.stderr:
        line = line.strip()
        if line.startswith("I: "):
            progress.step(f"mmdebstrap: {line.removeprefix('I: ').rstrip('.')}")
        elif line.startswith("E: "):
            wrong = wrong or line.removeprefix("E: ")
    return wrong


# -- the file system -----------------------------------------------------------------------------------


def make_ext4(tree: Path, image: Path, size: int, identity: str, label: str, born: int) -> None:
    """An ext4 file system with the files of a directory; the same files give the same bytes.

    `identity` is its UUID, `born` the time of all that is made now. EnvironmentProblem: no room, no mke2fs.
    """
    with image.open("wb") as file:
        file.truncate(size)
    command = [
        "mke2fs", "-q", "-F", "-t", "ext4", "-O", _FEATURES, "-b", str(_BLOCK), "-I", str(_INODE),
        "-i", str(_BYTES_PER_INODE), "-m", "1", "-J", f"size={_journal(size)}", "-U", identity, "-L", label,
        "-E", f"hash_seed={identity},lazy_itable_init=0,lazy_journal_init=0,root_owner=0:0",
        "-d", str(tree), str(image),
    ]  # fmt: skip
    times = {"SOURCE_DATE_EPOCH": str(born), "E2FSPROGS_FAKE_TIME": str(born)}
    said = _run_as_root(command, f"the files do not fit into {size >> 20}M, or mke2fs cannot write", times)
    if "Could not allocate" in said:  # older ones go on without the files for which there is no room
        raise EnvironmentProblem(f"the files do not fit into {size >> 20}M: say a larger --size")
    settle_times(image, born)


def _journal(size: int) -> int:
    """MiB of a journal."""
    return 16 if size < 1 << 30 else 64


def _run_as_root(command: list[str], wrong: str, more: dict[str, str] | None = None) -> str:
    """Run a tool as root, in a user namespace if need be; what it said. EnvironmentProblem: it failed."""
    environment = os.environ | {"LC_ALL": "C", "PATH": _path(), **(more or {})}
    done = subprocess.run(
        [*_namespace(), *command], env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    if done.returncode:
        raise EnvironmentProblem(f"{wrong} ({command[0]}: {_last_line(done.stderr)})")
    return done.stderr


def _namespace() -> list[str]:
    """What makes this user root of a user namespace."""
    return [] if os.geteuid() == 0 else ["unshare", "--map-root-user", "--map-auto"]


@contextlib.contextmanager
def _running(
    command: list[str],
    *,
    stdin: int = subprocess.DEVNULL,
    stdout: "int | IO[str]" = subprocess.DEVNULL,
    env: dict[str, str] | None = None,
) -> "Iterator[subprocess.Popen[str]]":
    """A process that does not outlive us, whatever happens."""
    process = subprocess.Popen(
        command, stdin=stdin, stdout=stdout, stderr=subprocess.PIPE, text=True, errors="replace",
        env=env or (os.environ | {"LC_ALL": "C", "PATH": _path()}),
    )  # fmt: skip
    try:
        yield process
    finally:
        if process.poll() is None:
            process.terminate()
            process.wait()
        for stream in (process.stdin, process.stderr):
            if stream is not None and not stream.closed:
                stream.close()


def _path() -> str:
    return f"{os.environ.get('PATH', '')}:{_SYSTEM_PATHS}"


def _quoted(path: Path) -> str:
    import shlex

    return shlex.quote(str(path))


def _last_line(text: str) -> str:
    return text.strip().rpartition("\n")[2] or "no reason given"


def _require(tool: str, package: str) -> None:
    if shutil.which(tool, path=_path()) is None:
        raise EnvironmentProblem(
            f"{tool} is not installed, and a Debian image is made with it: 'apt install {package}' as root"
        )


def _check_room(directory: Path) -> None:
    free = shutil.disk_usage(directory).free
    if free < _NEEDED:
        raise EnvironmentProblem(
            f"{directory}: {free >> 20} MiB are free there, and making an image takes {_NEEDED >> 20}"
        )
