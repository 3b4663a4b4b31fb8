# SPDX-License-Identifier: GPL-2.0-only
"""Domains and their virtual processors: the state, and the few rules that keep it consistent.

A domain is everything that one guest owns; when it dies, all of that goes with it. Nothing here decides
anything about an exit; that is `traps/` and `hypercalls/`. A vCPU never sees its domain: it is given what it
needs of it.
"""
