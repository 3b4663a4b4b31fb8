# SPDX-License-Identifier: GPL-2.0-only
"""The store: a tree of small values through which domains and the toolstack find each other.

Read from the bottom: `limits` (errors, quotas, paths), `permissions`, `tree` (persistent nodes),
`transactions`, `watches`, `database` (what all clients share), `client` (every operation, as one domain may
do it); then the two ways in: `store` for the hypervisor's own parts, `wire` for guests' bytes. `domu`
writes what a new domain expects to find.
"""
