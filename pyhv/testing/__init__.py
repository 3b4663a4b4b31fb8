# SPDX-License-Identifier: GPL-2.0-only
"""What tests of kernels and of the hypervisor are made of: small guests from assembly text, and hypercalls as
methods.

    guest_machine     run a guest's source to its end; or leave it paused and call hypercalls from Python
    compat_machine    the paused guest with a 32-bit kernel
    bench             several guests on a machine, which a snapshot may replace while they run
    user_guest        a guest with a user process
    verbs             hypercalls as typed methods
    granting          three guests that grant each other pages
    vectors           exceptions and flags by their short names
    shared_pages      a page that guest and hypervisor share, without a machine
    saving, go_on     states that survive a file; snapshots that go on in a process of their own

None of these needs a test framework: what fails raises AssertionError. The rest is the plugin for pytest:

    plugin            what pytest loads: registers the others
    options, marker   what it can be told, and what a test can ask for; they import nothing of pyhv
    fixtures          machines and guests for tests
    report            what a failed test tells of its guests
    collection        kernels as tests; judging has what their verdicts mean
    injection         has things go wrong for guests
    coverage          which hypercalls a session has exercised
    recording         the runs of tests as files, and a test's very run again
    under_test        `pyhv.Machine` and `pyhv.Guest`, a little less forgiving
    machines          made for one test, or booted once and put back for each
"""
