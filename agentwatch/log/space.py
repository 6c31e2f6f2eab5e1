"""Disk space that is ours before we need it: blocks behind the end of a file, fallocate(2) with FALLOC_FL_KEEP_SIZE.

A spare file that is removed when the disk is full would do the same, until somebody else (the agent, whose writing may
have filled the disk) takes what it gives back. Blocks of the segment itself are nobody else's. The file's size stays
what was written, so that nothing that reads it sees them.
"""

from __future__ import annotations

import ctypes
import errno
import os

FALLOC_FL_KEEP_SIZE = 1
_UNSUPPORTED = (errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL)

_libc = ctypes.CDLL(None, use_errno=True)
_libc.fallocate.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64]
_libc.fallocate.restype = ctypes.c_int


def allocate(fd: int, offset: int, length: int) -> bool:
    """Reserve blocks for these bytes of a file without changing its size; False where the file system cannot.

    Raises OSError, ENOSPC and EDQUOT among it.
    """
    while _libc.fallocate(fd, FALLOC_FL_KEEP_SIZE, offset, length) != 0:
        number = ctypes.get_errno()
        if number in _UNSUPPORTED:
            return False
        if number != errno.EINTR:
            raise OSError(number, os.strerror(number))
    return True
