# SPDX-License-Identifier: GPL-2.0-only
"""Images in the format qcow2: as much of it as a disk has of data, on top of another image.

A file of *clusters*, all of one size, 512 bytes to 2 MiB, mostly 64 KiB. The first begins with the header;
which cluster is what else follows from tables, and all numbers in them are big-endian. Source: the format's
specification, `docs/interop/qcow2.txt` of QEMU.

    header ──► L1 table ──► L2 tables ──► data clusters          where is the guest's cluster n?
       │       one of       one cluster    one each; or nowhere:  L1[n / per table] names an L2 table,
       │       8 bytes      of 8 bytes     zeros, or the base's   L2[n % per table] the cluster
       │       for each     for each
       └────► refcount table ──► refcount blocks                  how often is the file's cluster m used?
              8 bytes for        one cluster of 1- to 64-bit      0: it is free
              each block         numbers

`header.py` reads and writes the first, `tables.py` caches and checks the tables, `refcounts.py` gives
clusters out and takes them back, `disk.py` is the disk, `create.py` makes one, `check.py` counts all
references anew.
"""
