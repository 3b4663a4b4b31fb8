# SPDX-License-Identifier: GPL-2.0-only
"""What the saved states of schedulers have in common: an account for each vCPU, and who waits and runs.

vCPUs are named. Accounts come in the order in which their vCPUs joined, and the queue in its own.
"""

from collections.abc import Iterable, Mapping
from collections.abc import Set as AbstractSet
from typing import Protocol, TypeVar

from pyhv.abi.layout import u16, u32
from pyhv.errors import ConfigError
from pyhv.sched.base import SchedParameters, Schedulable, VcpuName, check_parameters
from pyhv.state import Plain, items, refusal, restore, state, typed


class Account(Protocol):
    """What a scheduler keeps for a vCPU: a dataclass whose vCPU is given."""

    vcpu: Schedulable


A = TypeVar("A", bound=Account)


def say_accounts(accounts: Mapping[VcpuName, A]) -> Plain:
    """Each vCPU's name and account."""
    return [[list(name), state(account)] for name, account in accounts.items()]


def read_accounts(saved: Plain, known: Mapping[VcpuName, A]) -> dict[VcpuName, A]:
    """Restore the accounts of exactly those vCPUs that are known, in the order that was saved. StateError."""
    accounts: dict[VcpuName, A] = {}
    for number, item in enumerate(items(saved, "accounts")):
        where = f"accounts.{number}"
        name, account = items(item, where, 2)
        vcpu = typed(tuple[u16, u16], name, where)
        if vcpu not in known or vcpu in accounts:
            raise refusal(where, f"is of vCPU {vcpu}, which is not there, or was there already")
        restore(known[vcpu], account, where)
        accounts[vcpu] = known[vcpu]
    if len(accounts) != len(known):
        raise refusal("accounts", f"has {len(accounts)} vCPUs; there are {len(known)}")
    return accounts


def read_parameters(saved: Plain, known: AbstractSet[int], pcpus: int = 1) -> dict[int, SchedParameters]:
    """The weight and cap of exactly those domains that are known, in the order that was saved. StateError."""
    parameters = typed(dict[u16, tuple[u32, u32]], saved, "domains")
    if parameters.keys() != known:
        raise refusal("domains", f"are {sorted(parameters)}; there are {sorted(known)}")
    for domid, (weight, cap) in parameters.items():
        try:
            check_parameters(weight, cap, pcpus)
        except ConfigError as error:
            raise refusal("domains", f"has one, {domid}, that cannot be: {error}") from None
    return {domid: SchedParameters(*each) for domid, each in parameters.items()}


def say_places(queue: Iterable[A], running: Mapping[int, A]) -> dict[str, Plain]:
    """Who waits, in order, and who runs on which pCPU."""
    return {
        "queue": [list(account.vcpu.id) for account in queue],
        "running": [[pcpu, list(account.vcpu.id)] for pcpu, account in running.items()],
    }


def read_places(
    saved: Mapping[str, Plain], accounts: Mapping[VcpuName, A], placed: AbstractSet[VcpuName]
) -> tuple[list[A], dict[int, A]]:
    """The queue and who runs: all vCPUs of `placed` once. StateError."""
    queue = typed(list[tuple[u16, u16]], saved["queue"], "queue")
    running = typed(dict[u16, tuple[u16, u16]], saved["running"], "running")
    names = [*queue, *running.values()]
    if len(set(names)) != len(names) or set(names) != placed:
        raise refusal("queue", "and running are not those vCPUs that may run, each once")
    return [accounts[name] for name in queue], {pcpu: accounts[name] for pcpu, name in running.items()}
