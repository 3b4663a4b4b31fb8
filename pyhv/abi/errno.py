# SPDX-License-Identifier: GPL-2.0-only
"""Xen's error numbers (public header `errno.h`), as positive integers; hypercalls return the negative."""

import enum


class Errno(enum.IntEnum):
    """An error number of the Xen ABI."""

    EPERM = 1
    ENOENT = 2
    ESRCH = 3
    EINTR = 4
    EIO = 5
    ENXIO = 6
    E2BIG = 7
    ENOEXEC = 8
    EBADF = 9
    EAGAIN = 11
    ENOMEM = 12
    EACCES = 13
    EFAULT = 14
    EBUSY = 16
    EEXIST = 17
    EXDEV = 18
    ENODEV = 19
    ENOTDIR = 20
    EISDIR = 21
    EINVAL = 22
    ENOSPC = 28
    EROFS = 30
    EMLINK = 31
    EDOM = 33
    ERANGE = 34
    ENOSYS = 38
    ENODATA = 61
    ETIME = 62
    EBADMSG = 74
    EOVERFLOW = 75
    EILSEQ = 84
    ERESTART = 85
    EMSGSIZE = 90
    EOPNOTSUPP = 95
    EADDRINUSE = 98
    ENOBUFS = 105
    ETIMEDOUT = 110
