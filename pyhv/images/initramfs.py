# SPDX-License-Identifier: GPL-2.0-only
"""The initramfs that goes with Debian's kernel: busybox, a link for each of its applets, and one script.

The same archive serves pyhv, QEMU and Xen's dom0, so /init takes its console from the kernel. What it does
is chosen on the kernel command line:

    (nothing)            a shell with job control; when it exits, the machine is switched off
    w=NAME               a workload, timed by the guest's own clock; then the machine is switched off:
                         boot, cpu, fork, sys, console or trace

The lines "PYHV-..." are for programs that measure: each ends with the seconds of /proc/uptime.
"""

import gzip
import hashlib
import platform
import subprocess
from pathlib import Path
from typing import Final

from pyhv.loader.cpio import CpioWriter

COMPRESSION: Final = 1
"""gzip level: the guest unpacks it on an emulated processor, the host packs it once."""

INIT: Final = """\
#!/bin/sh
# PID 1. Times are read without starting a process, so that reading them costs nothing.
export PATH=/bin HOME=/ TERM="${TERM:-linux}"
set -f
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs dev /dev

stamp() {
    read -r up idle </proc/uptime
    echo "$* $up"
}

stamp PYHV-INIT-OK

# Drivers, if the guest has devices: each after those that it needs.
if [ -e /modules/order ]; then
    while read -r module; do insmod "/modules/$module.ko"; done </modules/order
fi

w=
read -r cmdline </proc/cmdline
for word in $cmdline; do
    case "$word" in
        w=*) w="${word#w=}" ;;
    esac
done

part() {
    local name="$1"
    shift
    stamp PYHV-BEGIN "$name"
    "$@"
    stamp PYHV-END "$name"
}

additions() {
    i=0 s=0
    while [ $i -lt 100000 ]; do
        s=$((s + i)) i=$((i + 1))
    done
    echo "$s"
}

recurrence() {
    awk 'BEGIN { s = 1; for (i = 0; i < 500000; i++) s = (s * 31 + i) % 65521; print s }'
}

processes() {
    i=0
    while [ $i -lt 300 ]; do
        /bin/true
        i=$((i + 1))
    done
}

# 16 MiB through a pipe: what is hashed is also read, written and handed from process to process.
zeros() {
    head -c 16777216 /dev/zero
}

md5() {
    zeros | md5sum
}

sha256() {
    zeros | sha256sum
}

calls() {
    dd if=/dev/zero of=/dev/null bs=1 count=200000
}

lines() {
    seq 20000
}

# Each function of the kernel gets a call to the tracer patched into it, or out of it. Nothing is recorded.
tracer() {
    echo "$1" >/sys/kernel/tracing/current_tracer
}

tracing() {
    mount -t tracefs trace /sys/kernel/tracing
    echo 0 >/sys/kernel/tracing/tracing_on
    part trace tracer function
    part untrace tracer nop
}

cpu() {
    part sh additions
    part awk recurrence
    part md5 md5
    part sha256 sha256
}

case "$w" in
    "")
        # Job control needs a controlling terminal. /dev/console can be none; the device behind it
        # becomes one when a session leader opens it.
        read -r active </sys/class/tty/console/active
        tty="/dev/${active##* }"
        export PS1='\\w # '
        cd /
        if [ -c "$tty" ]; then
            setsid sh -c "exec sh <$tty >$tty 2>&1"
        else
            sh
        fi
        ;;
    boot) part boot true ;;
    cpu) part cpu cpu ;;
    fork) part fork processes ;;
    sys) part sys calls ;;
    console) part console lines ;;
    trace) tracing ;;
    *) echo "PYHV-UNKNOWN $w: there are boot, cpu, fork, sys, console, trace" ;;
esac
stamp PYHV-POWEROFF
poweroff -f
"""

_APPLETS: Final = (
    "[ [[ ash awk basename bc blockdev bunzip2 bzcat cal cat chgrp chmod chown chroot clear cmp cp cpio "
    "cttyhack cut date dc dd df diff dirname dmesg du echo ed egrep env expr factor fallocate false "
    "fdisk fgrep find fold free grep groups gunzip gzip halt head hexdump hostname id ifconfig insmod "
    "ip kill killall less ln logger ls lsmod lzcat md5sum mkdir mkfifo mknod mktemp modprobe more mount "
    "mv nc nproc nslookup od paste patch pidof ping poweroff printf ps pwd readlink realpath reboot "
    "renice reset rev rm rmdir route sed seq setsid sh sha1sum sha256sum sha512sum shuf sleep sort stat "
    "strings stty swapoff swapon switch_root sync sysctl tac tail tar taskset tee test time timeout top "
    "touch tr true truncate tty umount uname uniq unlink unshare unxz unzip uptime usleep vi wc wget "
    "which who whoami xargs xxd xz xzcat yes zcat "
)


def applets(busybox: Path) -> list[str]:
    """What `busybox` can be: its own answer where it can run, else what every Debian build has."""
    if platform.system() == "Linux" and platform.machine() == "x86_64":
        try:
            answer = subprocess.run(
                [str(busybox), "--list"], capture_output=True, text=True, check=True, timeout=10
            )
        except (OSError, subprocess.SubprocessError):  # a noexec cache directory, for one
            return _APPLETS.split()
        return sorted(set(answer.stdout.split()))
    return _APPLETS.split()


def build(busybox: bytes, names: list[str]) -> bytes:
    """The archive, compressed. The same arguments give the same bytes."""
    archive = CpioWriter()
    for directory in ("dev", "proc", "sys", "tmp", "etc", "bin", "sbin"):
        archive.directory(directory)
    archive.node("dev/console", "c", 5, 1)
    archive.node("dev/null", "c", 1, 3, 0o666)
    archive.file("bin/busybox", busybox, 0o755)
    for name in names:
        if name != "busybox" and "/" not in name:
            archive.symlink(f"bin/{name}", "busybox")
    for command in ("poweroff", "reboot"):  # what the kernel runs when the toolstack asks it to stop
        archive.file(f"sbin/{command}", f"#!/bin/sh\nexec /bin/{command} -f\n".encode(), 0o755)
    archive.file("init", INIT.encode(), 0o755)
    return gzip.compress(archive.finish(), COMPRESSION, mtime=0)


def recipe() -> str:
    """Eight characters that change when this module would build something else from the same busybox."""
    parts = (INIT, _APPLETS, str(COMPRESSION), "2")
    return hashlib.blake2b("\0".join(parts).encode(), digest_size=4).hexdigest()
