# SPDX-License-Identifier: GPL-2.0-only
"""gdb's protocol, spoken by hand and by a hostile client: what is answered, and that nothing else happens."""

import contextlib
import socket
import struct
from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import pyhv
from pyhv.api.stub import GdbStub
from pyhv.errors import ConfigError, EnvironmentProblem
from pyhv.gdb.packets import MOST_BYTES, packet
from pyhv.gdb.server import parse_address
from pyhv.gdb.session import GdbSession
from pyhv.gdb.target import TARGETS
from pyhv.guests.build import build
from pyhv.observe.digest import Digest

WIDE_BYTES = sum(one.bits // 8 for one in TARGETS[64].registers)


class Spoken:
    """A session, without a socket."""

    def __init__(self, *names: str, vcpus: int = 1) -> None:
        self.machine = pyhv.Machine(memory="128M", virtual_time=True, history=True)
        self.guests = [self.machine.boot(name, vcpus=vcpus, memory="16M") for name in names]
        self.guest = self.guests[0]
        self.debugger = self.machine.hypervisor.debug()
        self.session = GdbSession(self.machine.hypervisor, self.debugger, self.guest.domid, None)

    def ask(self, text: str | bytes) -> str:
        reply = self.session.handle(text if isinstance(text, bytes) else text.encode())
        assert reply is not None, "the guests run"
        return reply.decode("latin-1")

    def run(self, text: str, seconds: float = 20) -> str:
        """A packet that lets guests run, and what comes of it."""
        assert self.session.handle(text.encode()) is None
        self.machine.run(seconds=seconds)
        reply = self.session.look()
        assert reply is not None, "they have not stopped"
        return reply.decode()

    def symbol(self, name: str) -> int:
        return self.guest.symbols[name]


@pytest.fixture
def spoken() -> Iterator[Spoken]:
    made = Spoken("hello")
    yield made
    made.machine.close()


def test_what_is_supported(spoken: Spoken) -> None:
    told = spoken.ask("qSupported:multiprocess+;swbreak+;hwbreak+;xmlRegisters=i386").split(";")
    assert f"PacketSize={MOST_BYTES:x}" in told
    assert {"multiprocess+", "qXfer:features:read+", "QStartNoAckMode+"} <= set(told)
    assert "ReverseStep+" not in told
    assert spoken.ask("vMustReplyEmpty") == ""
    assert spoken.ask("qTStatus") == ""
    assert spoken.ask("vCont?") == "vCont;c;C;s;S;t;r"
    assert spoken.ask("QStartNoAckMode") == "OK"
    assert spoken.session.without_acks


@pytest.mark.parametrize("width", [64, 32])
def test_the_description_is_that_of_the_registers(width: int) -> None:
    target = TARGETS[width]
    tree = ET.fromstring(target.xml.split(b"\n", 2)[2])
    told = [(reg.get("name"), int(reg.get("bitsize") or 0)) for reg in tree.iter("reg")]
    assert told == [(one.name, one.bits) for one in target.registers]
    names = [name for name, _ in told]
    assert ("rip" if width == 64 else "eip") in names
    assert {"fs_base", "gs_base", "st7", "fop", "mxcsr", f"xmm{15 if width == 64 else 7}"} <= set(names)


def test_a_document_comes_in_pieces(spoken: Spoken) -> None:
    whole, at = b"", 0
    while True:
        piece = spoken.ask(f"qXfer:features:read:target.xml:{at:x},100").encode("latin-1")
        whole += piece[1:]
        at += len(piece) - 1
        if piece[:1] == b"l":
            break
    assert whole == TARGETS[64].xml
    assert spoken.ask("qXfer:features:read:other.xml:0,100") == "E00"
    assert spoken.ask("qXfer:features:read:target.xml:zz,100") == ""
    assert spoken.ask("qXfer:features:read:target.xml:ffffffff,ffffffff") == "l"


def test_threads(spoken: Spoken) -> None:
    spoken.ask("qSupported:multiprocess+")
    assert spoken.ask("?") == "T05thread:p1.1;core:0;"
    assert spoken.ask("qC") == "QCp1.1"
    assert spoken.ask("qfThreadInfo") == "mp1.1"
    assert spoken.ask("qsThreadInfo") == "l"
    assert spoken.ask("Tp1.1") == "OK"
    assert spoken.ask("Tp1.2").startswith("E.")
    assert spoken.ask("Hgp2.1").startswith("E.")
    assert spoken.ask("Hgp-1.-1") == "OK"
    assert "kernel mode" in bytes.fromhex(spoken.ask("qThreadExtraInfo,p1.1")).decode()
    assert 'id="p1.1"' in spoken.ask("qXfer:threads:read::0,1000")


def test_registers(spoken: Spoken) -> None:
    values = bytes.fromhex(spoken.ask("g"))
    assert len(values) == WIDE_BYTES
    assert struct.unpack_from("<Q", values, 16 * 8)[0] == spoken.symbol("_start")
    assert spoken.ask("p10") == spoken.symbol("_start").to_bytes(8, "little").hex()
    assert spoken.ask("P0=" + (0x1122334455667788).to_bytes(8, "little").hex()) == "OK"
    assert spoken.guest.registers.rax == 0x1122334455667788
    values = bytes.fromhex(spoken.ask("g"))
    assert spoken.ask("G" + (values[:8] + (77).to_bytes(8, "little") + values[16:]).hex()) == "OK"
    assert spoken.guest.registers.rbx == 77
    assert spoken.guest.registers.rip == spoken.symbol("_start")


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("P10=" + (1 << 63).to_bytes(8, "little").hex(), "canonical"),
        ("P12=03000000", "cs cannot be written"),
        ("P0=00", "rax has 64 bits"),
        ("Pffff=00", "no register"),
        ("pzz", "no register"),
        ("G00", "not all registers"),
        ("Gzz", "no bytes"),
        ("m10,", "no address"),
        ("m7000000000,8", "not mapped"),
        ("M7000000000,1:00", "not mapped"),
        ("M1000,2:00", "another length"),
        ("Z5,1000,1", "no breakpoint"),
        ("Z2,1000,0", "bytes can be watched"),
        ("Z0,1000,1;X1,0", "with conditions"),
        ("vCont;x", "nothing that a thread"),
        ("vCont;r1000:1", "nothing that a thread"),
        ("vAttach;7", "no guest 7"),
        ("vAttach;", "no process"),
        ("Hx1", "g or c"),
        ("Hgzz", "no thread"),
        ("c1000", r"set \$pc"),
    ],
)
def test_what_cannot_be(spoken: Spoken, text: str, why: str) -> None:
    before = spoken.ask("g")
    answer = spoken.ask(text)
    assert answer.startswith("E.")
    assert why.replace("\\", "") in answer
    assert spoken.ask("g") == before


def test_flags_that_are_the_hypervisors_stay(spoken: Spoken) -> None:
    assert spoken.ask("P11=ffffffff") == "OK"
    assert spoken.guest.registers.rflags & 0x3000 == 0, "IOPL"
    assert spoken.guest.registers.rflags & 0x201 == 0x201


def test_memory(spoken: Spoken) -> None:
    at = spoken.symbol("start_info")
    assert spoken.ask(f"M{at:x},4:78563412") == "OK"
    assert spoken.guest.memory.u32(at) == 0x12345678
    assert spoken.ask(f"m{at:x},4") == "78563412"
    assert spoken.ask(b"X%x,2:\x00\x7d" % at) == "OK"
    assert spoken.ask(f"m{at:x},2") == "007d"
    assert len(spoken.ask(f"m{spoken.symbol('_start'):x},ffffffff")) <= MOST_BYTES


@pytest.mark.promise("I-20")
def test_what_keeps_guests_apart_cannot_be_written(spoken: Spoken) -> None:
    """Page tables are read-only to their guest, and to its debugger."""
    table = spoken.machine.hypervisor.residents[1].domain.vcpus[0].paging.kernel_l4
    va = next(va for va in range(0, 16 << 20, 4096) if _machine_page(spoken, va) == table)
    assert "page table" in spoken.ask(f"M{va:x},1:00")
    assert spoken.machine.audit() == []


def _machine_page(spoken: Spoken, va: int) -> int | None:
    try:
        return int(spoken.guest.memory.machine_address(va)) >> 12
    except LookupError:
        return None


def test_breakpoints_and_steps(spoken: Spoken) -> None:
    spoken.ask("qSupported:multiprocess+;swbreak+;hwbreak+")
    at = spoken.symbol("console_init")
    assert spoken.ask(f"Z0,{at:x},1") == "OK"
    assert spoken.run("vCont;c:p1.-1") == "T05swbreak:;thread:p1.1;core:0;"
    assert spoken.guest.registers.rip == at
    assert spoken.ask(f"z0,{at:x},1") == "OK"
    assert spoken.run("vCont;s:p1.1") == "T05thread:p1.1;core:0;"
    assert spoken.guest.registers.rip > at
    end = spoken.symbol("puts")
    assert spoken.run(f"vCont;r{at:x},{end:x}:p1.1;c") == "T05thread:p1.1;core:0;"
    assert not at <= spoken.guest.registers.rip < end
    assert spoken.ask(f"Z1,{spoken.symbol('puts'):x},1") == "OK"
    assert spoken.run("c") == "T05hwbreak:;thread:p1.1;core:0;"
    assert spoken.ask(f"z1,{spoken.symbol('puts'):x},1") == "OK"
    assert spoken.run("vCont;C05:p1.1") == "W00;process:1"
    assert spoken.ask("?") == "W00;process:1"
    assert spoken.guest.console.text.endswith("SUCCESS\n")


def test_too_many_points(spoken: Spoken) -> None:
    for number in range(256):
        assert spoken.ask(f"Z0,{number:x},1") == "OK"
    assert "256 breakpoints" in spoken.ask("Z0,100,1")
    assert spoken.ask("Z0,10,1") == "OK"
    for number in range(4):
        assert spoken.ask(f"Z2,{number * 8:x},8") == "OK"
    assert "4 watchpoints" in spoken.ask("Z4,100,8")
    assert spoken.ask("D") == "OK"
    assert spoken.session.over


def test_an_interrupt_and_a_detach(spoken: Spoken) -> None:
    assert spoken.session.interrupt() is None, "they stand still already"
    assert spoken.session.handle(b"c") is None
    reply = spoken.session.interrupt()
    assert reply == b"T02thread:1;core:0;"
    assert spoken.ask("D;1") == "OK"
    assert spoken.debugger.debugged == set()


def test_a_guest_is_killed(spoken: Spoken) -> None:
    assert spoken.ask("vKill;1") == "OK"
    spoken.machine.run(seconds=1)
    assert spoken.guest.end is not None
    assert spoken.guest.end.reason == "destroyed"


CRASHER = '.include "xen.inc"\n.include "kernel.inc"\n.text\n_start:\n    kernel_entry\nfatal:\n    ud2\n'


def test_a_crash_is_a_signal_and_then_an_end(tmp_path: Path) -> None:
    source = tmp_path / "crasher.S"
    source.write_text(CRASHER)
    image = tmp_path / "crasher.img"
    image.write_bytes(build(source))
    spoken = Spoken(str(image))
    assert spoken.run("c").startswith("T0bthread:")
    assert spoken.guest.registers.rip == spoken.symbol("fatal")
    assert spoken.run("c") == "X0b"
    spoken.machine.close()


def test_two_guests_are_two_processes() -> None:
    spoken = Spoken("hello", "hello32")
    spoken.ask("qSupported:multiprocess+")
    assert spoken.ask("qfThreadInfo") == "mp1.1"
    assert spoken.ask("vAttach;2") == "T05thread:p2.1;core:0;"
    assert spoken.ask("qfThreadInfo") == "mp1.1,p2.1"
    assert b"i386</arch" in spoken.ask("qXfer:features:read:target.xml:0,1000").encode()
    assert spoken.ask("Hgp1.1") == "OK"
    assert b"i386:x86-64</arch" in spoken.ask("qXfer:features:read:target.xml:0,1000").encode()
    assert spoken.run("vCont;c:p2.-1") == "W00;process:2"
    assert spoken.guests[0].registers.rip == spoken.symbol("_start"), "it was held"
    assert spoken.run("vCont;c") == "W00;process:1"
    assert all(guest.console.text.endswith("SUCCESS\n") for guest in spoken.guests)
    spoken.machine.close()


def test_monitor(spoken: Spoken) -> None:
    def monitor(command: str) -> str:
        return bytes.fromhex(spoken.ask("qRcmd," + command.encode().hex())).decode()

    assert monitor("guests") == "1  hello, 1 vCPUs\n"
    assert monitor("time").endswith(" s\n")
    assert "monitor guests" in monitor("nonsense")


# -- clients that are broken, or hostile -----------------------------------------------------------------

_LETTERS = "?gGpPmMXHTcCsSDkbzZvqQ!R"
PACKETS = st.one_of(
    st.binary(max_size=30),
    st.builds(
        lambda name, rest: (name + rest).encode("latin-1"),
        st.sampled_from(
            [*_LETTERS, "vCont", "vAttach;", "qXfer:features:read:", "qSupported:", "Hg", "Hc", "Z0,"]
        ),
        st.text("0123456789abcdef,;:.-p=zr#$}*\x00", max_size=40),
    ),
)


@settings(max_examples=150)
@given(st.lists(PACKETS, max_size=12))
def test_any_packets_get_an_answer_and_break_nothing(sent: list[bytes]) -> None:
    spoken = _shared()
    for data in sent:
        if data[:1] in (b"k", b"D") or data[:5] in (b"vKill", b"vAtta"):
            continue
        reply = spoken.session.handle(data)
        if reply is None:
            assert spoken.session.interrupt() is not None
    assert spoken.machine.audit() == []
    assert spoken.ask("?").startswith("T05")


_kept: list[Spoken] = []


def _shared() -> Spoken:
    if not _kept:
        _kept.append(Spoken("hello"))
    return _kept[0]


class Client:
    """A socket to a stub that is served in between."""

    def __init__(self, stub: GdbStub) -> None:
        host, port = stub.address.rsplit(":", 1)
        self.stub = stub
        self.socket = socket.create_connection((host, int(port)), timeout=5)
        stub.pump()

    def send(self, data: bytes) -> None:
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            self.socket.sendall(data)
        for _ in range(3):
            self.stub.pump()

    def close(self) -> None:
        self.socket.close()
        for _ in range(3):
            self.stub.pump()


@pytest.mark.promise("I-20")
@settings(max_examples=25)
@given(st.lists(st.one_of(st.binary(max_size=60), PACKETS.map(packet)), max_size=8), st.booleans())
def test_any_bytes_cost_a_client_its_own_session(pieces: list[bytes], abrupt: bool) -> None:
    with pyhv.Machine(memory="32M", virtual_time=True) as machine:
        guest = machine.boot("hello")
        with machine.gdb() as stub:
            client = Client(stub)
            for piece in pieces:
                client.send(piece)
            if abrupt:
                client.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            client.close()
            if guest.end is None and not stub.detached:
                second = Client(stub)
                second.send(packet(b"?"))
                assert b"$T05thread:" in second.socket.recv(100)
                second.close()
        assert machine.audit() == []
        assert machine.run(seconds=20).name == "ENDED"


def test_what_never_ends_costs_the_session() -> None:
    with pyhv.Machine(memory="32M", virtual_time=True) as machine:
        machine.boot("hello")
        with machine.gdb() as stub:
            client = Client(stub)
            client.send(b"$" + b"m" * (MOST_BYTES + 100))
            assert not stub.connected
            assert client.socket.recv(10) in (b"", b"+")
            client.close()
            assert stub.waits, "the guest waits for another client"


def test_a_client_that_does_not_read_loses_its_session() -> None:
    with pyhv.Machine(memory="32M", virtual_time=True) as machine:
        machine.boot("hello")
        with machine.gdb() as stub:
            client = Client(stub)
            client.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            for _ in range(20_000):
                client.send(packet(b"g"))
                if not stub.connected:
                    break
            assert not stub.connected
            client.close()


def test_one_client_at_a_time() -> None:
    with pyhv.Machine(memory="32M", virtual_time=True) as machine:
        machine.boot("hello")
        with machine.gdb() as stub:
            first = Client(stub)
            second = Client(stub)
            second.send(packet(b"?"))
            first.send(packet(b"?"))
            assert b"T05" in first.socket.recv(100)
            first.close()
            second.send(b"")
            assert b"T05" in second.socket.recv(100)
            second.close()


def test_a_session_that_looks_leaves_the_run_as_it_was() -> None:
    def history(look: bool) -> str:
        with pyhv.Machine(memory="32M", virtual_time=True) as machine:
            machine.boot("hello")
            digest = Digest()
            machine.on("exit", digest.exit)
            if look:
                with machine.gdb() as stub:
                    client = Client(stub)
                    client.send(packet(b"?") + packet(b"g") + packet(b"m100000,100") + packet(b"D"))
                    client.close()
            machine.run(seconds=20)
            return digest.summary()

    assert history(look=True) == history(look=False)


# -- addresses -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("1234", ("127.0.0.1", 1234)),
        (":1234", ("127.0.0.1", 1234)),
        ("0.0.0.0:5", ("0.0.0.0", 5)),
        ("[::1]:5", ("::1", 5)),
        ("unix:/tmp/x", Path("/tmp/x")),
    ],
)
def test_addresses(text: str, address: tuple[str, int] | Path) -> None:
    assert parse_address(text) == address


@pytest.mark.parametrize("text", ["", "hello", "unix:", "host:", "1:2:x", "1:70000", "-1"])
def test_what_is_no_address(text: str) -> None:
    with pytest.raises(ConfigError, match="is no address for gdb"):
        parse_address(text)


def test_an_address_that_cannot_be_had(tmp_path: Path) -> None:
    with pyhv.Machine(memory="32M", virtual_time=True) as machine:
        guest = machine.boot("hello")
        with machine.gdb() as stub:
            port = stub.address.rsplit(":", 1)[1]
            with pyhv.Machine(memory="32M") as other:
                other.boot("hello")
                with pytest.raises(EnvironmentProblem, match=r"gdb cannot be served at .*in use"):
                    other.gdb(port)
        with pytest.raises(EnvironmentProblem, match="gdb cannot be served"):
            machine.gdb(f"unix:{tmp_path}/none/socket")
        path = tmp_path / "socket"
        with machine.gdb(f"unix:{path}") as stub:
            assert stub.address == str(path)
            assert f"target remote {path}" in stub.command
        assert not path.exists()
        with socket.socket(socket.AF_UNIX) as stale:
            stale.bind(str(path))
        with machine.gdb(f"unix:{path}", guest):
            pass
        path.write_text("a file")
        with pytest.raises(EnvironmentProblem, match="in use"):
            machine.gdb(f"unix:{path}")
        assert path.read_text() == "a file"
