"""The calls mincore and msync."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

from realmem.arguments import WORD, as_register
from realmem.layout import MS_ASYNC, MS_INVALIDATE, MS_SYNC, PAGE_SHIFT, PAGE_SIZE, TASK_SIZE
from realmem.mm.plan import fail
from realmem.mm.vma import VM_LOCKED, VM_SHARED, page_align

if TYPE_CHECKING:
    from realmem.mm.address_space import MemoryMap


def mincore(mm: MemoryMap, addr: int, length: int) -> bytes:
    """
    Tell which pages of a range are in memory (mm/mincore.c:sys_mincore()).

    :return: a byte for each page, 1 or 0.
    :raises OSError: EINVAL, not aligned; ENOMEM, a hole or past the end of user addresses.
    """
    start, length = as_register(addr, "addr"), as_register(length, "length")
    if start % PAGE_SIZE:
        fail(errno.EINVAL, "address not aligned")
    if start + length > TASK_SIZE:
        fail(errno.ENOMEM, "past the end of the address space")
    end = start + page_align(length)
    with mm.lock:
        mm.core.check_alive()
        parts: list[bytes] = []
        for vma in mm.tree.span(start, end):
            if vma.start > start:
                break
            last = min(vma.end, end)
            shown = vma.inode is None or vma.object.shown
            parts.append(
                mm.core.mincore(start, last) if shown else b"\1" * ((last - start) >> PAGE_SHIFT)
            )
            start = last
    if start < end:
        fail(errno.ENOMEM, "a hole in the range")
    return b"".join(parts)


def msync(mm: MemoryMap, addr: int, length: int, flags: int) -> None:
    """
    Write a range back (mm/msync.c:sys_msync()); anonymous memory has nowhere to go.

    What others wrote to the files is seen by every call, so that MS_INVALIDATE has nothing to do.

    :raises OSError: EINVAL; ENOMEM, a hole; EBUSY, MS_INVALIDATE of what is locked; what a write
        to the file answers.
    """
    start, length = as_register(addr, "addr"), as_register(length, "length")
    flags = as_register(flags, "flags")
    mm.core.check_alive()
    if flags & ~(MS_ASYNC | MS_INVALIDATE | MS_SYNC) or start % PAGE_SIZE:
        fail(errno.EINVAL, "flags, or address not aligned")
    if flags & MS_ASYNC and flags & MS_SYNC:
        fail(errno.EINVAL, "MS_ASYNC and MS_SYNC exclude each other")
    end = start + page_align(length) % WORD
    if end >= WORD:
        fail(errno.ENOMEM, "the range wraps around")
    hole = False
    for vma in mm.tree.span(start, end):
        if vma.start > start:
            hole = True
            if flags == MS_ASYNC:
                break
        if flags & MS_INVALIDATE and vma.vm_flags_word & VM_LOCKED:
            fail(errno.EBUSY, "locked")
        if flags & MS_SYNC and vma.inode is not None and vma.vm_flags_word & VM_SHARED:
            number = vma.inode.write_back(*vma.pages_at(max(start, vma.start), min(end, vma.end)))
            number = number or vma.inode.sync()
            if number:
                fail(number, vma.object.path)
        start = vma.end
    if hole or start < end:
        fail(errno.ENOMEM, "a hole in the range")
