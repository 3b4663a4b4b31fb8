# SPDX-License-Identifier: GPL-2.0-only
"""The guests' time stamp counter in numbers (public header `xen.h`, `struct vcpu_time_info`).

The TSC runs at 1 GHz, so TSC ticks and nanoseconds of system time are the same number:
ns = (ticks << TSC_SHIFT) * TSC_TO_SYSTEM_MUL >> 32.
"""

from typing import Final

TSC_HZ: Final = 1_000_000_000
TSC_SHIFT: Final = 1
TSC_TO_SYSTEM_MUL: Final = 0x8000_0000
