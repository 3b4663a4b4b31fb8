# SPDX-License-Identifier: GPL-2.0-only
"""Exceptions and flags by the short names that the tests of traps use all the time."""

from pyhv.abi.x86 import FLAG_IF, FLAG_RF, FLAG_TF, Vector

DE, DB, BP, OF, BR = Vector.DE, Vector.DB, Vector.BP, Vector.OF, Vector.BR
UD, NM, TS, NP, SS = Vector.UD, Vector.NM, Vector.TS, Vector.NP, Vector.SS
GP, PF = Vector.GP, Vector.PF
IF, RF, TF = FLAG_IF, FLAG_RF, FLAG_TF
