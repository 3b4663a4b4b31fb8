# SPDX-License-Identifier: GPL-2.0-only
"""What domains know of each other, compared: the two ends of event channels, and both accounts of grants.

Each side keeps its own account, and they are changed together. What the audit is for memory, this is for
them: a finding is a bug of pyhv, or state that was saved by nobody.
"""

from collections import Counter
from collections.abc import Iterable, Iterator
from typing import TypeAlias

from pyhv.abi.grants import MapFlag
from pyhv.domain.domain import Domain
from pyhv.events.channels import EventChannels
from pyhv.grants.maptrack import Maptrack

_Use: TypeAlias = tuple[int, int, int, MapFlag, bool]
"""(granter, reference, borrower, half, read-only)."""


def relations(domains: Iterable[Domain], dom0: EventChannels, borrowed: Maptrack) -> list[str]:
    """Everything in which domains that have not been taken apart contradict each other, or domain 0.

    Of that these are the event channels, and what it has borrowed.
    """
    everybody = list(domains)
    channels = [dom0, *(domain.events for domain in everybody)]
    return [*_peers(channels), *_grants(everybody, borrowed)]


def _peers(channels: Iterable[EventChannels]) -> Iterator[str]:
    for each in channels:
        for port in each.unmatched():
            yield f"port {port} of d{each.domid} is connected to a port that is not connected to it"


def _grants(domains: list[Domain], borrowed_by_dom0: Maptrack) -> Iterator[str]:
    """Uses of grants, as the lenders and as the borrowers count them."""
    living = {domain.domid for domain in domains}
    lent, borrowed = Counter[_Use](), Counter[_Use]()
    for domain in domains:
        for ref, loan in domain.grants.active_mappings():
            for readonly, counts in ((True, loan.readers), (False, loan.writers)):
                for half, count in counts.items():
                    lent[domain.domid, ref, loan.domid, half, readonly] += count
    maptracks = {0: borrowed_by_dom0, **{domain.domid: domain.maptrack for domain in domains}}
    for domid, maptrack in maptracks.items():
        for _, mapping in maptrack.all():
            if mapping.granter in living:
                for half in (MapFlag.HOST, MapFlag.DEVICE):
                    use = (mapping.granter, mapping.ref, domid, half, mapping.readonly)
                    borrowed[use] += half in mapping.halves
    for use in sorted(use for use in lent.keys() | borrowed.keys() if lent[use] != borrowed[use]):
        granter, ref, borrower, half, readonly = use
        yield (
            f"d{borrower} has the {half.name} half of grant {ref} of d{granter} {borrowed[use]} times"
            f" {'read-only' if readonly else 'writable'}, d{granter} counts {lent[use]}"
        )
