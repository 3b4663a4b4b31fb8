# SPDX-License-Identifier: GPL-2.0-only
"""What people write of networks: addresses, rates, `--net`; and how long who is limited waits."""

from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyhv.errors import ConfigError
from pyhv.net import limit, mac, spec
from pyhv.net.limit import LEAST_BURST, Bucket, Rate
from pyhv.net.spec import Forward, NetSpec, SocketEnd
from pyhv.net.switch import Vlans
from pyhv.state import construct, state

SECOND = 10**9


# -- addresses ---------------------------------------------------------------------------------------------


def test_derived_addresses_are_xens_and_nobody_elses() -> None:
    made = {mac.derived(7, domid, device) for domid in range(300) for device in range(8)}
    assert len(made) == 2400
    assert all(address[:3] == bytes.fromhex("00163e") and len(address) == 6 for address in made)


@given(st.integers(0), st.tuples(st.integers(0, 65535), st.integers(0, 255)), st.data())
def test_no_two_devices_have_one_address(seed: int, one: tuple[int, int], data: st.DataObject) -> None:
    other = data.draw(st.tuples(st.integers(0, 65535), st.integers(0, 255)).filter(lambda two: two != one))
    assert mac.derived(seed, *one) != mac.derived(seed, *other)


def test_the_address_follows_from_the_seed() -> None:
    assert mac.derived(1, 3, 0) == mac.derived(1, 3, 0) != mac.derived(2, 3, 0)
    for domid, device in ((-1, 0), (65536, 0), (0, 256), (0, -1)):
        with pytest.raises(ValueError, match="network device"):
            mac.derived(0, domid, device)


@given(st.binary(min_size=6, max_size=6).filter(lambda address: not address[0] & 1 and any(address)))
def test_an_address_is_read_as_it_is_written(address: bytes) -> None:
    assert mac.parse(mac.shown(address)) == mac.parse(address.hex("-").upper()) == address


@pytest.mark.parametrize(
    "text",
    ["", "00:16:3e:01:02", "٠0:16:3e:01:02:03", "00:16:3e:01:02:03:04", "00:16-3e:01:02:03",
     "0:16:3e:01:02:03", "00163e010203",
     "00:16:3e:01:02:0g", "01:16:3e:01:02:03", "ff:ff:ff:ff:ff:ff", "00:00:00:00:00:00"],
)  # fmt: skip
def test_what_is_no_devices_address_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match=r"^mac=.*\.$"):
        mac.parse(text)


# -- rates -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "each", "interval_ms"),
    [
        ("10Mb/s", 62_500, 50),
        ("10Mb/s@20ms", 25_000, 20),
        ("1GB/s@1s", 10**9, 1000),
        ("250KB/s", 12_500, 50),
        ("8000b/s@500us", 0.5, 0.5),
        ("1GB/s@10ms", 10_000_000, 10),
    ],
)
def test_rates_as_xl_has_them(text: str, each: float, interval_ms: float) -> None:
    if each < 1:
        with pytest.raises(ConfigError, match="less than a byte"):
            limit.parse(text)
    else:
        assert limit.parse(text) == Rate(int(each), int(interval_ms * 1_000_000))


@pytest.mark.parametrize(
    "text", ["", "10", "10Mb", "10mb/s", "Mb/s", "-1Mb/s", "10Mb/s@", "10Mb/s@20", "0b/s", "10Mb/s@0s",
             "10Mb/s@11s", "2000Gb/s", "1e3b/s", "1.5Mb/s"],
)  # fmt: skip
def test_what_is_no_rate_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match=r"^rate=.*\.$"):
        limit.parse(text)


@pytest.mark.promise("N-6")
@given(
    st.builds(Rate, st.integers(1, 10**6), st.integers(1, SECOND)),
    st.lists(st.tuples(st.integers(1, 65557), st.integers(0, SECOND)), max_size=30),
)
def test_nobody_sends_more_than_his_rate(rate: Rate, frames: list[tuple[int, int]]) -> None:
    """Whoever waits as long as he is told may send then, and no sooner; one frame is his debt at most."""
    bucket, now, sent = Bucket(rate), 0, 0
    for size, pause in frames:
        now += pause
        due = bucket.wait(now)
        if due is not None:
            assert due > now
            assert bucket.wait(due - 1) == due, "no later than needed"
            bucket, now = construct(Bucket, state(bucket), rate=rate), due
            assert bucket.wait(now) is None
        bucket.spend(size)
        sent += size
        assert sent - 65557 < now // rate.interval_ns * rate.bytes_each
        assert bucket.left <= max(LEAST_BURST, rate.bytes_each)


def test_a_large_frame_passes_the_smallest_rate() -> None:
    bucket = Bucket(Rate(1, SECOND))
    assert bucket.wait(0) == SECOND
    assert bucket.wait(SECOND) is None
    bucket.spend(65535)
    assert bucket.wait(SECOND) == (1 + 65535) * SECOND


# -- devices -----------------------------------------------------------------------------------------------

MAC = bytes.fromhex("00163e010203")


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ("switch", NetSpec()),
        ("switch=lan", NetSpec("lan")),
        ("switch=lan.10", NetSpec("lan", Vlans(10, frozenset()))),
        ("switch=lan:20:30", NetSpec("lan", Vlans(0, frozenset({20, 30})))),
        ("switch=lan.10:20", NetSpec("lan", Vlans(10, frozenset({20})))),
        ("bridge=lan", NetSpec("lan")),
        ("mac=00:16:3e:01:02:03, bridge=lan, rate=10Mb/s@20ms, vifname=web0",
         NetSpec("lan", mac=MAC, rate=Rate(25_000, 20_000_000), vifname="web0")),
        ("switch,mac=00:16:3E:01:02:03", NetSpec(mac=MAC)),
        ("user", NetSpec("", forwards=())),
        ("user,hostfwd=tcp:127.0.0.1:2222-:22",
         NetSpec("", forwards=(Forward("tcp", "127.0.0.1", 2222, 22),))),
        ("user,hostfwd=udp::53-:5353,hostfwd=:[::1]:80-:8080,mac=00:16:3e:01:02:03",
         NetSpec("", mac=MAC, forwards=(Forward("udp", "", 53, 5353), Forward("tcp", "::1", 80, 8080)))),
        ("socket:/tmp/a.sock", NetSpec(socket=SocketEnd("/tmp/a.sock", listens=True))),
        ("socket:a=b,server=off,bridge=lan", NetSpec("lan", socket=SocketEnd("a=b", listens=False))),
    ],
)  # fmt: skip
def test_devices(text: str, meant: NetSpec) -> None:
    assert spec.parse(text) == meant


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "no word"),
        ("lan", "no word"),
        ("switch=", "no word"),
        ("switch,", "no word"),
        ("switch,mac=", "no word"),
        ("switch=lan,bridge=other", "there twice"),
        ("switch=a b", "names no switch"),
        ("switch=lan/../x", "names no switch"),
        ("switch=abcdefghijklmnop", "names no switch"),
        ("switch=.10", "names no switch"),
        ("switch=lan.0", "no VLAN 0"),
        ("switch=lan.4095", "no VLAN 4095"),
        ("switch=lan:99999", "no VLAN 99999"),
        ("switch=lan.10.20", "names no switch"),
        ("mac=1,bridge=lan", "six bytes"),
        ("bridge=lan,mac=00:16:3e:01:02:03,mac=00:16:3e:01:02:04", "there twice"),
        ("bridge=lan,rate=fast", "bits or bytes"),
        ("bridge=lan,vifname=a/b", "no name for a device"),
        ("bridge=lan,model=e1000", "not understood here; there are mac, rate, vifname, bridge"),
        ("bridge=lan,hostfwd=tcp::1-:2", "'hostfwd' is not understood"),
        ("bridge=lan,server=on", "'server' is not understood"),
        ("user,bridge=lan", "wire of its own"),
        ("user,server=off", "not understood here; there are mac, rate, vifname, hostfwd"),
        ("user=lan", "'user' is not understood"),
        ("user,hostfwd=tcp:127.0.0.1:2222", "not of the form"),
        ("user,hostfwd=icmp::1-:2", "not of the form"),
        ("user,hostfwd=tcp:localhost:1-:2", "no address of the host"),
        ("user,hostfwd=tcp:[::1:1-:2", "not of the form"),
        ("user,hostfwd=tcp::0-:2", "no port 0"),
        ("user,hostfwd=tcp::1-:65536", "no port 65536"),
        ("user,hostfwd=tcp::1-10.0.2.15:22", "leave '10.0.2.15' out"),
        ("socket:", "which socket"),
        ("socket:/a,server=perhaps", "neither on"),
    ],
)
def test_a_mistake_is_one_sentence(text: str, why: str) -> None:
    with pytest.raises(ConfigError) as refused:
        spec.parse(text)
    said = str(refused.value)
    assert why in said
    assert said.endswith(".")
    assert "\n" not in said


@given(st.text(alphabet="switchuserocke:=,.-[]/0123456789abmgtdfvlBK@ ", max_size=40))
def test_nothing_else_comes_of_any_words(text: str) -> None:
    with suppress(ConfigError):
        assert isinstance(spec.parse(text), NetSpec)
