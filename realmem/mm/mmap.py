"""
The calls mmap and munmap, with Linux's errors.

Compare mm/mmap.c:ksys_mmap_pgoff() => do_mmap(), mm/vma.c:do_vmi_munmap().
"""

from __future__ import annotations

import errno
import os

from realmem.arguments import WORD, as_register
from realmem.layout import (
    MAP_ANONYMOUS,
    MAP_FIXED,
    MAP_FIXED_NOREPLACE,
    MAP_GROWSDOWN,
    MAP_HUGETLB,
    MAP_LOCKED,
    MAP_NONBLOCK,
    MAP_NORESERVE,
    MAP_POPULATE,
    MAP_PRIVATE,
    MAP_SHARED_VALIDATE,
    PAGE_SIZE,
    PROT_WRITE,
)
from realmem.mm.address_space import MemoryMap
from realmem.mm.vma import Vma, page_align, vm_flags_of

TASK_SIZE = (1 << 47) - PAGE_SIZE
MMAP_MIN_ADDR = 65536
MAX_MAP_COUNT = 65530


def _error(number: int, what: str = "") -> OSError:
    words = os.strerror(number)
    return OSError(number, f"{words}: {what}" if what else words)


def mmap(
    mm: MemoryMap, addr: int | None, length: int, prot: int, flags: int, file: object, offset: int
) -> int:
    """
    Map private anonymous memory.

    :return: the address.
    :raises OSError: as Linux's; EOPNOTSUPP for kinds of mappings that are not there yet.
    """
    hint = 0 if addr is None else as_register(addr, "addr")
    length = as_register(length, "length")
    prot, flags = as_register(prot, "prot"), as_register(flags, "flags")
    offset = as_register(offset, "offset")
    if length == 0:
        raise _error(errno.EINVAL, "length 0")
    length = page_align(length)
    if length >= WORD:
        raise _error(errno.ENOMEM)
    kind = flags & MAP_SHARED_VALIDATE
    if kind == 0:
        raise _error(errno.EINVAL, "neither MAP_SHARED nor MAP_PRIVATE")
    if flags & MAP_FIXED_NOREPLACE:
        flags |= MAP_FIXED
    if kind != MAP_PRIVATE or file is not None or not flags & MAP_ANONYMOUS:
        raise _error(errno.EOPNOTSUPP, "only MAP_PRIVATE | MAP_ANONYMOUS is there yet")
    if flags & (MAP_GROWSDOWN | MAP_LOCKED | MAP_HUGETLB):
        raise _error(errno.EOPNOTSUPP, "MAP_GROWSDOWN, MAP_LOCKED, MAP_HUGETLB are not there yet")
    if offset % PAGE_SIZE:
        raise _error(errno.EINVAL, "offset")
    if length > TASK_SIZE:
        raise _error(errno.ENOMEM)
    with mm.lock:
        mm.core.check_alive()
        if len(mm.vmas) > MAX_MAP_COUNT:
            raise _error(errno.ENOMEM, "vm.max_map_count")
        start = _place(mm, hint, length, flags)
        word = vm_flags_of(prot, noreserve=bool(flags & MAP_NORESERVE))
        mm.publish(mm.vmas.plan_map(Vma(start, start + length, word)))
    if flags & MAP_POPULATE and not flags & MAP_NONBLOCK and prot:
        _populate(mm, start, length, bool(prot & PROT_WRITE))
    return start


def _place(mm: MemoryMap, hint: int, length: int, flags: int) -> int:
    if flags & MAP_FIXED:
        if hint % PAGE_SIZE:
            raise _error(errno.EINVAL, "address not aligned")
        if hint > TASK_SIZE - length:
            raise _error(errno.ENOMEM, "past the end of the address space")
        if hint < MMAP_MIN_ADDR:
            raise _error(errno.EPERM, "below vm.mmap_min_addr")
        if hint < mm.low or hint + length > mm.high:
            raise _error(errno.ENOMEM, "outside the window")
        if flags & MAP_FIXED_NOREPLACE and mm.vmas.overlaps(hint, hint + length):
            raise _error(errno.EEXIST)
        return hint
    hint = page_align(hint)
    if mm.low <= hint and hint + length <= mm.high and not mm.vmas.overlaps(hint, hint + length):
        return hint
    start = mm.free_area(length)
    if start is None:
        raise _error(errno.ENOMEM, "no room in the address space")
    return start


def _populate(mm: MemoryMap, start: int, length: int, write: bool) -> None:
    # mm/gup.c:__mm_populate() reports no failure.
    try:
        mm.core.touch(start, length, write)
    except MemoryError:
        pass


def munmap(mm: MemoryMap, addr: int, length: int) -> None:
    """
    Unmap what is in a range; VMAs across its ends are split.

    :raises OSError: EINVAL, a misaligned, empty or impossible range; ENOMEM, a split that
        vm.max_map_count forbids.
    """
    addr, length = as_register(addr, "addr"), as_register(length, "length")
    if addr % PAGE_SIZE or length == 0 or addr > TASK_SIZE:
        raise _error(errno.EINVAL)
    length = page_align(length)
    if length > TASK_SIZE - addr:
        raise _error(errno.EINVAL)
    with mm.lock:
        mm.core.check_alive()
        change = mm.vmas.plan_unmap(addr, addr + length)
        if change.removed == 0:
            return
        if change.removed == 1 and len(change.added) == 2 and len(mm.vmas) >= MAX_MAP_COUNT:
            raise _error(errno.ENOMEM, "vm.max_map_count")
        mm.publish(change)
