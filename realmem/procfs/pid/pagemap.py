"""
``/proc/PID/pagemap``: a word for each page.

Compare fs/proc/task_mmu.c:pagemap_read().
"""

from __future__ import annotations

import errno
import os
import struct
from typing import Any

from realmem.arguments import as_address, as_int
from realmem.layout import PAGE_SHIFT, PAGE_SIZE

TASK_SIZE = (1 << 47) - PAGE_SIZE
PM_PFRAME = (1 << 55) - 1
PM_SOFT_DIRTY = 1 << 55
PM_MMAP_EXCLUSIVE = 1 << 56
PM_UFFD_WP = 1 << 57
PM_GUARD_REGION = 1 << 58
PM_FILE = 1 << 61
PM_SWAP = 1 << 62
PM_PRESENT = 1 << 63
ENTRY_BYTES = 8


def process_pagemap(process: Any, addr: int, n: int) -> list[int]:
    """
    Give the words of the ``n`` pages from the one that holds ``addr``.

    There are none past the end of user addresses.  Who lacks CAP_SYS_ADMIN sees no frames.
    """
    start = as_address(addr) >> PAGE_SHIFT
    pages = min(as_int(n, "n", 0), max((TASK_SIZE >> PAGE_SHIFT) - start, 0))
    process.mm.core.check_alive()
    if not pages:
        return []
    words: list[int] = process.mm.core.pagemap(start << PAGE_SHIFT, pages)
    if "CAP_SYS_ADMIN" in process.mm.capabilities:
        return words
    return [word & ~PM_PFRAME for word in words]


def read_pagemap(process: Any, offset: int, count: int) -> bytes:
    """
    Read the file as pread(2) would.

    :param offset: bytes, 8 for each page from address 0.
    :param count: bytes.
    :raises OSError: EINVAL, either is not a multiple of 8.
    """
    if offset < 0 or offset % ENTRY_BYTES or count % ENTRY_BYTES:
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
    first = offset // ENTRY_BYTES
    if first >= TASK_SIZE >> PAGE_SHIFT:
        return b""
    words = process_pagemap(process, first << PAGE_SHIFT, count // ENTRY_BYTES)
    return struct.pack(f"<{len(words)}Q", *words)
