# SPDX-License-Identifier: GPL-2.0-only
"""`pyhv boot`: from words to `session.BootOptions`. What is wrong with the words alone is refused here."""

import importlib
import itertools
import re
import threading
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from pyhv.cli.attaching import capture_of, disks_of_guests, net_specs, seeds
from pyhv.cli.fetch import check_kernel_options, kernel_options
from pyhv.cli.messages import progress, say, verbose_option
from pyhv.cli.options import RunWords, file, run_options
from pyhv.images.debian import STOCK

if TYPE_CHECKING:
    from pyhv.cli.session import GuestOptions
    from pyhv.images.source import Source
    from pyhv.storage.spec import DiskSpec

MAX_NAME: Final = 64
COVERAGE_KINDS: Final = ("", ".info", ".json", ".txt")

EPILOG: Final = """\b
Examples:
  pyhv boot                            pyhv's own guests, side by side
  pyhv boot hello                      one of them
  pyhv boot debian                     Debian's stock kernel with a shell
  pyhv boot debian --suite trixie --flavour cloud    another of Debian's kernels
  pyhv boot pv-grub                    GRUB's prompt
  pyhv boot vmlinuz --ramdisk initramfs.cpio.gz --append console=hvc0
  pyhv boot disk.img                   the kernel that is installed on it, by PV-GRUB
  pyhv boot disk.img --count 3 --overlay    three of it, and the disk stays as it is
  pyhv boot ping pong --stats          two guests that talk to each other
  pyhv boot pages --virtual-time --digest run.txt    the same digest each time
  echo 'uname -a; exit' | pyhv boot debian --timeout 60
  pyhv boot debian --save debian.snap --save-when '/ # '    then: pyhv restore debian.snap
  pyhv boot debian --record run.rec    then: pyhv replay run.rec
  pyhv boot pages --coverage pages    then read pages/index.html

\b
Exit codes, the gravest guest deciding (6 before 5 before 7 before 124 before 9 before 3):
  0    all guests powered off
  2    the command line is wrong
  3    a guest reported SKIP
  4    the image, the configuration or the environment is wrong
  5    a guest reported a failure
  6    a guest crashed, or halted without powering off
  7    deadlock: all guests wait, and nothing is due
  8    a bug of pyhv
  9    a guest ended otherwise: it rebooted or suspended itself
  10   a replay is not the recorded run (pyhv replay)
  124  the time budget is spent
  130  Ctrl-] or Ctrl-C (143: SIGTERM, 129: SIGHUP), or the reader of
       standard output has gone
"""


def _scheduler(_context: click.Context, _parameter: click.Parameter, value: str) -> str:
    """A key of `pyhv.sched.SCHEDULERS`."""
    from pyhv.sched import SCHEDULERS

    if value not in SCHEDULERS:
        raise click.BadParameter(f"there is no scheduler {value!r}; there are {', '.join(SCHEDULERS)}.")
    return value


def _coverage(_context: click.Context, _parameter: click.Parameter, value: Path | None) -> Path | None:
    """A file of a kind that is known, or a directory."""
    if value is not None and not value.is_dir() and value.suffix not in COVERAGE_KINDS:
        raise click.BadParameter(
            f"{str(value)!r} is no kind of report; it may end in .info (lcov), .json (all blocks) or .txt"
            f" (a table by symbol), and without such an end it is a directory for HTML."
        )
    return value


@click.command(epilog=EPILOG)
@click.argument("images", nargs=-1, metavar="[IMAGE]...")
@click.option("--kernel", type=file(), metavar="FILE", help="Boot disks with that kernel, without PV-GRUB.")
@click.option("--ramdisk", type=file(), metavar="FILE", help="Ramdisk (initramfs) for the guests.")
@click.option("--ramdisk-raw", is_flag=True, help="Do not unpack a ramdisk that is gzip; the guest will.")
@click.option("--append", default="", metavar="TEXT", help="Kernel command line, added to the default one.")
@click.option(
    "--memory",
    type=int,
    metavar="MIB",
    help="Memory of each guest in MiB (default: 128; 16 for pyhv's own, 512 for disks).",
)
@click.option(
    "--vcpus", type=click.IntRange(1, 32), default=1, metavar="N", help="Virtual CPUs of each guest."
)
@click.option(
    "--disk",
    "disks",
    multiple=True,
    metavar="DISK",
    help="A disk of each guest: PATH, PATH,ro, PATH,xvdb,ro, or as xl has it: format=qcow2,target=PATH.",
)
@click.option(
    "--overlay",
    is_flag=False,
    flag_value="",
    metavar="[FILE]",
    help="Keep the disks as they are: what a guest writes goes to FILE, or is thrown away.",
)
@click.option(
    "--net",
    "nets",
    multiple=True,
    metavar="NET",
    help="A network device of each guest: switch[=NAME], user[,hostfwd=tcp:127.0.0.1:2222-:22], socket:PATH.",
)
@click.option(
    "--pcap",
    "captures",
    multiple=True,
    metavar="[NAME=]FILE",
    help="Write the frames of all switches, or of one switch or device, to FILE for Wireshark.",
)
@click.option(
    "--cloud-init",
    type=click.Path(file_okay=False, path_type=Path),
    metavar="DIR",
    help="Give cloud-init user-data, meta-data and network-config from there, on a disk of its own (xvdb).",
)
@click.option("--name", metavar="NAME", help="Domain name (default: from the image); several get a number.")
@click.option(
    "--weight",
    type=click.IntRange(1, 65535),
    default=256,
    show_default=True,
    metavar="N",
    help="Share of the processor, relative to the others.",
)
@click.option(
    "--cap",
    type=click.IntRange(0, 100),
    default=0,
    metavar="PERCENT",
    help="Most of the processor that a guest may have; 0 is no limit.",
)
@click.option(
    "--scheduler",
    callback=_scheduler,
    default="credit",
    metavar="NAME",
    show_default=True,
    help="Who runs next: credit or rr.",
)
@click.option("--seed", type=click.IntRange(0), default=0, metavar="N", help="Seed of all chance in the run.")
@click.option(
    "--virtual-time/--real-time",
    default=False,
    help="Time from executed code, the same in each run; or from the host's clock (the default).",
)
@click.option(
    "--count", type=click.IntRange(1, 1000), default=1, metavar="N", help="Boot each image N times."
)
@click.option(
    "--coverage",
    type=click.Path(path_type=Path),
    callback=_coverage,
    metavar="FILE",
    help="Write what guests executed: NAME.info (lcov), .json, .txt; without an end, a directory of HTML.",
)
@kernel_options
@run_options
@click.option("--verdict", type=click.Choice(["xtf"]), help="Read the guests' result: Xen Test Framework.")
@verbose_option
def boot(
    images: tuple[str, ...],
    kernel: Path | None,
    ramdisk: Path | None,
    ramdisk_raw: bool,
    append: str,
    memory: int | None,
    vcpus: int,
    disks: tuple[str, ...],
    overlay: str | None,
    nets: tuple[str, ...],
    captures: tuple[str, ...],
    cloud_init: Path | None,
    name: str | None,
    weight: int,
    cap: int,
    scheduler: str,
    seed: int,
    virtual_time: bool,
    count: int,
    coverage: Path | None,
    flavour: str | None,
    suite: str | None,
    verdict: str | None,
    how: RunWords,
) -> None:
    """Boot guests and stay until all have ended.

    IMAGE is one of pyhv's own guests ("?" lists them, "hostile/?" those that attack the hypervisor), or
    "debian" (Debian's Linux), or a kernel that Debian packages (pv-grub, pv-grub-32, gnumach, gnumach-32), or
    a kernel file: ELF or bzImage, Xen PV. Without IMAGE some of pyhv's own guests run side by side.

    A disk image (or the name of one that `pyhv image create` has put into the cache) is booted by PV-GRUB,
    which reads its grub.cfg. With --kernel, --ramdisk or --append pyhv starts a kernel itself: what is not
    given is what PV-GRUB would have started.

    Standard output is the guests' console: of one guest its bytes and nothing else, of several guests
    lines that begin with "name| ". Standard input is the (first) guest's. At a terminal every key goes to a
    single guest; Ctrl-] leaves. pyhv's own messages go to standard error.
    """
    if how.digest is not None and not virtual_time:
        raise click.UsageError("--digest needs --virtual-time: in real time no two runs are alike.")
    if name is not None and not _is_name(name):
        raise click.UsageError(f"--name {name!r}: letters, digits and ._+- make a name, {MAX_NAME} at most.")
    check_kernel_options(images, flavour, suite)
    from pyhv.images import source as sources

    if not sources.ALL_BUILTIN.issuperset(images):
        _import_meanwhile("pyhv.cli.session")  # while the image is unpacked

    if not images:
        say("no IMAGE given, so here are pyhv's own guests, side by side")
    words = images or sources.DEMONSTRATION
    found = [
        sources.resolve(
            word,
            progress,
            with_ramdisk=ramdisk is None,
            raw_ramdisk=ramdisk_raw,
            drivers=bool(disks or nets),
            flavour=flavour or STOCK,
            suite=suite,
        )
        for word in words
    ] * count
    if kernel is not None and any(source.disk is None for source in found):
        raise click.UsageError("--kernel is for disks: another IMAGE is a kernel itself.")
    if kernel is not None or ramdisk is not None or append:
        found = [one if one.disk is None else sources.directly(one.disk, kernel) for one in found]
    given = None if ramdisk is None else sources.ramdisk(ramdisk, raw=ramdisk_raw)
    wanted_nets = net_specs(nets)
    names = domain_names([name or source.name for source in found])
    attached = disks_of_guests([source.disk for source in found], disks, overlay, seeds(cloud_init, names))
    from pyhv.cli import session

    def guest(source: "Source", called: str, disks: "list[DiskSpec]") -> "GuestOptions":
        size, initial = source.memory if memory is None else memory, given or source.ramdisk
        judged = verdict or ("pyhv" if source.builtin else "")
        origin = source.origin
        if ramdisk is not None:
            origin = replace(origin, ramdisk=str(ramdisk.absolute()), raw_ramdisk=ramdisk_raw)
        chosen = replace(source, memory=size, ramdisk=initial, origin=origin, disk=None)
        return session.GuestOptions(chosen, called, judged, disks)

    options = session.BootOptions(
        guests=[guest(*one) for one in zip(found, names, attached, strict=True)],
        run=how.options(virtual_time=virtual_time),
        vcpus=vcpus,
        weight=weight,
        cap=cap,
        append=append,
        nets=wanted_nets,
        captures=[capture_of(one) for one in captures],
        scheduler=scheduler,
        seed=seed,
        coverage=coverage,
    )
    click.get_current_context().exit(session.run(options))


def _import_meanwhile(module: str) -> None:
    """Import a module in a thread: unpacking a kernel leaves the interpreter free for that."""
    threading.Thread(target=importlib.import_module, args=(module,), name="pyhv-import", daemon=True).start()


def domain_names(wanted: list[str]) -> list[str]:
    """A name for each domain: cleaned, and numbered from 1 where several want the same."""
    clean = [re.sub(r"[^A-Za-z0-9._+-]", "_", name)[: MAX_NAME - 5] or "guest" for name in wanted]
    taken = {name for name in clean if clean.count(name) == 1}
    names = []
    for name in clean:
        if clean.count(name) > 1:
            numbered = (f"{name}-{number}" for number in itertools.count(1))
            name = next(candidate for candidate in numbered if candidate not in taken)
            taken.add(name)
        names.append(name)
    return names


def _is_name(name: str) -> bool:
    return re.fullmatch(rf"[A-Za-z0-9._+-]{{1,{MAX_NAME}}}", name) is not None
