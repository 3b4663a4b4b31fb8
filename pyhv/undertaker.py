# SPDX-License-Identifier: GPL-2.0-only
"""Taking domains apart: whatever a domain still holds when it has ended is dropped here.

References go in the order in which they depend on each other; what remains afterwards are only frames that
another domain still has mapped through a grant.
"""

import numpy as np

from pyhv.address import Mfn
from pyhv.board import Board
from pyhv.devices.toolstack import ToolstackDomain
from pyhv.domain.domain import Domain
from pyhv.grants.holding import drop
from pyhv.mmu import stepwise
from pyhv.mmu.frames import FrameTable
from pyhv.mmu.physical import PhysicalMemory
from pyhv.mmu.segdesc import drop_descriptor_page
from pyhv.resident import Resident, Residents
from pyhv.xenstore.domu import remove_domu


def take_apart(board: Board, resident: Resident, residents: Residents, dom0: ToolstackDomain) -> None:
    """Drop everything that a domain that has ended still holds."""
    frames, physical, domain = board.frames, board.physical, resident.domain
    domain.events.destroy()
    _end_mappings(frames, domain, residents)
    remove_domu(dom0.store, domain.domid)
    drop_tables(frames, resident)
    dom0.detach(domain.domid)
    disconnect(physical, domain)
    for mfn in domain.grants.destroy():
        frames.drop_shared(mfn)
    frames.free_allocated(domain.domid)
    frames.drop_shared(domain.shared_info.mfn)
    domain.cache.free(frames)
    domain.area.free(frames)
    domain.engine.close()


def disconnect(physical: PhysicalMemory, domain: Domain) -> None:
    """Memory has no longer to tell the domain's engine and page tables what changes under them."""
    physical.invalidators.remove(domain.drop_code)
    physical.executors.remove(domain.tables)


def drop_tables(frames: FrameTable, resident: Resident) -> None:
    """Drop what the vCPUs refer to, and all page tables."""
    domain, cpu = resident.domain, resident.dispatcher.cpu
    for vcpu in domain.vcpus:
        cpu.vcpu = vcpu
        cpu.drop_ldt()
        for mfn in vcpu.descriptors.gdt_frames:
            drop_descriptor_page(domain.tables, mfn)
        vcpu.descriptors.gdt_frames = []
        for table in (vcpu.paging.kernel_l4, vcpu.paging.user_l4):
            if table:
                domain.tables.drop_table(table)
        vcpu.paging.kernel_l4 = vcpu.paging.user_l4 = Mfn(0)
        if vcpu.info.moved:
            frames.drop_writable(vcpu.info.page.mfn)
    stepwise.drop_ahead(domain.tables)
    stepwise.settle(domain.tables)
    for pinned in np.flatnonzero((frames.owner_np == domain.domid) & (frames.pinned_np == 1)).tolist():
        domain.tables.unpin(pinned)


def _end_mappings(frames: FrameTable, domain: Domain, residents: Residents) -> None:
    """Undo the accounting of grants that the domain had mapped; its page tables drop the frames."""
    for handle, mapping in list(domain.maptrack.all()):
        granter = residents.any_domain(mapping.granter)
        halves = mapping.halves
        if mapping.device:
            drop(frames, mapping.frame, mapping.readonly)
        if granter is not None:
            granter.grants.drop(mapping.ref, mapping.readonly, halves)
        domain.maptrack.end(handle, halves)
