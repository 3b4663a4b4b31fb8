# SPDX-License-Identifier: GPL-2.0-only
"""Reserved domain identifiers (public header `xen.h`)."""

from typing import Final

DOMID_FIRST_RESERVED: Final = 0x7FF0
DOMID_SELF: Final = 0x7FF0
DOMID_IO: Final = 0x7FF1
DOMID_XEN: Final = 0x7FF2
DOMID_COW: Final = 0x7FF3
DOMID_INVALID: Final = 0x7FF4
DOMID_IDLE: Final = 0x7FFF
"""SELF: the caller. IO: owner of device memory. XEN: the hypervisor. INVALID: nobody, a free frame."""
