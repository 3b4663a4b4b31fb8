# SPDX-License-Identifier: GPL-2.0-only
"""Reserved domain identifiers (public header `xen.h`)."""

DOMID_FIRST_RESERVED = 0x7FF0
DOMID_SELF = 0x7FF0
DOMID_IO = 0x7FF1
DOMID_XEN = 0x7FF2
DOMID_COW = 0x7FF3
DOMID_INVALID = 0x7FF4
DOMID_IDLE = 0x7FFF
"""SELF: the caller. IO: owner of device memory. XEN: the hypervisor. INVALID: nobody, a free frame."""
