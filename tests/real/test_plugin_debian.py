# SPDX-License-Identifier: GPL-2.0-only
"""The pytest plugin with a real Linux: one boot shared by many tests, and what a failing command tells."""

import time

import pytest

pytestmark = pytest.mark.debian
pytest_plugins = ["pytester"]
TESTS = 200


def test_many_tests_share_one_boot(pytester: pytest.Pytester, capsys: pytest.CaptureFixture[str]) -> None:
    """Each writes files that no other one sees. How long that takes is reported, and not judged."""
    pytester.makepyfile(
        f"""
        import pytest

        @pytest.mark.guest("debian", memory="128M", append="quiet")
        @pytest.mark.parametrize("number", range({TESTS}))
        def test_files(booted_guest, number):
            booted_guest.run("test ! -e /tmp/mine && mkdir /tmp/mine")
            booted_guest.run(f"cd /tmp/mine; echo {{number}} > number; head -c 65536 /dev/zero > filled")
            assert booted_guest.run("cat /tmp/mine/number").output == f"{{number}}\\n"
            assert booted_guest.run("wc -c < /tmp/mine/filled").output == "65536\\n"
        """
    )
    began = time.monotonic()
    done = pytester.runpytest_subprocess("-n", "2", "-p", "no:cacheprovider")
    took = time.monotonic() - began
    done.assert_outcomes(passed=TESTS)
    with capsys.disabled():
        print(f"\n{TESTS} tests that share a booted Debian, on two workers: {took:.1f} s")


def test_a_command_that_fails_says_all(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        """
        import pytest

        pytestmark = pytest.mark.guest("debian", memory="128M", append="quiet")

        def test_status(booted_guest):
            assert booted_guest.run("exit 7", check=False).status == 7
            booted_guest.run("echo what it said; exit 3")

        def test_panic(booted_guest):
            booted_guest.run("echo c > /proc/sysrq-trigger")

        def test_unharmed(booted_guest):
            booted_guest.run("true")
        """
    )
    done = pytester.runpytest_inprocess("-p", "no:cacheprovider")
    done.assert_outcomes(passed=1, failed=2)
    done.stdout.fnmatch_lines(
        [
            "E *debian: the command 'echo what it said; exit 3' has failed with status 3; it printed:",
            "E *what it said",
            "E *debian has not come to an end with the command *sysrq-trigger': it has ended (crash)*",
            "*- pyhv: debian -*",
            "Domain 1 (debian) crashed at *",
            "*Kernel panic - not syncing: sysrq triggered crash",
        ]
    )
