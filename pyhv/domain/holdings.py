# SPDX-License-Identifier: GPL-2.0-only
"""What a domain holds of the machine's memory, for the audit."""

from pyhv.domain.domain import Domain
from pyhv.grants.maptrack import Maptrack
from pyhv.mmu.audit import Holdings, MappedGrant, VcpuHoldings


def holdings(domain: Domain) -> Holdings:
    """Every frame that something of `domain` refers to by other ways than its page tables."""
    return Holdings(
        domid=domain.domid,
        width=domain.width,
        tot_pages=domain.tot_pages,
        tables=domain.tables,
        cache=domain.cache,
        area=domain.area,
        vcpus=[
            VcpuHoldings(
                vcpu.number, vcpu.paging.kernel_l4, vcpu.paging.user_l4,
                vcpu.descriptors.gdt_frames, vcpu.descriptors.ldt_mapped,
                info=vcpu.info.page.mfn if vcpu.info.moved else None,
            )
            for vcpu in domain.vcpus
        ],
        shared=[domain.shared_info.mfn, *domain.grants.shared_frames],
        event_pages=domain.events.shared_frames(),
        grants=mapped_grants(domain.maptrack),
    )  # fmt: skip


def mapped_grants(maptrack: Maptrack) -> list[MappedGrant]:
    """What a domain has mapped of others."""
    return [MappedGrant(one.frame, one.readonly, one.device) for _, one in maptrack.all()]
