# SPDX-License-Identifier: GPL-2.0-only
"""Back ends inside the hypervisor, behind the real ring protocols: console and xenstore."""
