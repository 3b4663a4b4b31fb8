# SPDX-License-Identifier: GPL-2.0-only
"""How a domain lends a page to another: `table` is the lender's side, `maptrack` the borrower's.

Both are accounts, not mappings: they say what may be used and what is in use. Page tables and reference
counts of frames are changed by the hypercall layer, which asks here first.
"""
