"""
The memory under a measurement: bound to one host node, checked to lie there, populated.

It is what a machine's own nodes are made of, a :class:`realmem.pool.Pool` of one node.  Only
where the host gives no huge pages to shared memory, they come from anonymous memory, bound and
checked in the same way.
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import re
from collections.abc import Generator, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from realmem import preflight
from realmem.bench.results import UNVERIFIED
from realmem.errors import HostError
from realmem.host import limits
from realmem.layout import PAGE_SIZE, STRUCT_PAGE_SIZE, format_size
from realmem.placement import Placement, locate

_THP_ENABLED = "/sys/kernel/mm/transparent_hugepage/enabled"

PAGE_BYTES = {"4K": 4 << 10, "2M": 2 << 20, "1G": 1 << 30}


@dataclass(frozen=True)
class Buffer:
    """
    Writable, populated memory.

    :ivar address: of its first byte, aligned to its page size.
    :ivar size: in bytes.
    :ivar pages: ``"4K"``, ``"2M"`` or ``"1G"``.
    :ivar source: where it comes from and what is amiss with it, in words.
    :ivar stamps: what could not be made sure of.
    """

    address: int
    size: int
    pages: str
    source: str
    stamps: tuple[str, ...]


@contextmanager
def buffer(node: int, size: int, pages: str, least: int | None = None) -> Iterator[Buffer]:
    """
    Provide memory on a node for the length of a ``with`` block.

    :param node: host node.
    :param size: bytes.
    :param pages: ``"4K"``, ``"2M"`` or ``"1G"``.
    :param least: halve the size down to this when the host has not so much; None never does.
    :raises HostError: the host has not got it.
    """
    while True:
        try:
            made = _make(node, size, pages)
            area = next(made)
        except HostError as why:
            if why.errno != errno.ENOMEM or least is None or size // 2 < least:
                raise
            size //= 2
        else:
            break
    try:
        yield area
    finally:
        made.close()


def default_pages() -> tuple[str, ...]:
    """Give the page kinds that are measured when none is named: 4K, and 2M if there are any."""
    return ("4K", "2M") if backing_for("2M", 2 << 20, 0) else ("4K",)


def backing_for(pages: str, size: int, node: int) -> str | None:
    """
    Choose where pages of a kind come from.

    :return: a backing of :class:`realmem.pool.Pool`, or ``"anonymous"`` for transparent huge pages
        where shared memory gets none, or None where the host has no such pages.
    """
    if pages == "4K":
        return "4K"
    with suppress(HostError):
        _check_hugetlb(pages, size, node)
        return f"hugetlb-{pages}"
    if pages == "2M":
        with suppress(HostError):
            preflight.check_thp()
            return "thp"
        if limits.choice(_text(_THP_ENABLED)) in ("always", "madvise"):
            return "anonymous"
    return None


def huge_bytes(address: int, size: int) -> int:
    """Count the bytes of a range that huge pages map, by the kernel's own account (smaps)."""
    found = 0
    inside = False
    for line in (_text("/proc/self/smaps") or "").splitlines():
        span = re.match(r"([0-9a-f]+)-([0-9a-f]+) ", line)
        if span:
            inside = int(span[1], 16) < address + size and int(span[2], 16) > address
        elif inside and line.startswith(
            ("AnonHugePages:", "ShmemPmdMapped:", "Shared_Hugetlb:", "Private_Hugetlb:")
        ):
            found += int(line.split()[1]) * 1024
    return min(found, size)


def _make(node: int, size: int, pages: str) -> Generator[Buffer, None, None]:
    backing = backing_for(pages, size, node)
    if backing is None:
        _check_hugetlb(pages, size, node)   # says what to change
        raise HostError(errno.ENOMEM, f"huge pages of {pages} came and went; try again")
    if backing == "anonymous":
        return _anonymous(node, size, pages)
    return _pool(node, size, pages, backing)


def _check_hugetlb(pages: str, size: int, node: int) -> None:
    page_bytes = PAGE_BYTES[pages]
    demand = preflight.Demand(_pool_bytes(size, page_bytes), 0, node)
    preflight.check_hugetlb([demand], page_bytes)


def _pool(node: int, size: int, pages: str, backing: str) -> Generator[Buffer, None, None]:
    from realmem.pool import Pool, PoolNode

    total = _pool_bytes(size, PAGE_BYTES[pages])
    memmap = -(-total // PAGE_SIZE * STRUCT_PAGE_SIZE // PAGE_SIZE) * PAGE_SIZE
    pool = Pool([PoolNode(total, 0, node, total - memmap, memmap)], backing=backing)
    try:
        area = Buffer(pool.direct_map, size, pages, f"a pool with {backing} backing", ())
        yield _described(area, pool.placement[0])
    finally:
        pool.close()


def _anonymous(node: int, size: int, pages: str) -> Generator[Buffer, None, None]:
    """Take private memory, huge pages on request; bound before it is touched."""
    from realmem._core import pool as core

    preflight.check([preflight.Demand(size, 0, node)], size, backing="4K", mlock=False)
    align = PAGE_BYTES[pages]
    size = -(-size // align) * align
    area = mmap.mmap(-1, size + align, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    start = ctypes.addressof(ctypes.c_char.from_buffer(area))
    try:
        area.madvise(mmap.MADV_HUGEPAGE)
        address = -(-start // align) * align
        refused = core.bind(address, size, node)
        failed = core.populate(address, size)
        if failed:
            raise HostError(failed, f"cannot populate {format_size(size)} on host node {node}")
        refusal = f"mbind: {errno.errorcode.get(refused, refused)}" if refused else None
        yield _described(
            Buffer(address, size, pages, "anonymous memory with MADV_HUGEPAGE", ()),
            locate(address, size, PAGE_SIZE, node, refusal),
        )
    finally:
        area.close()


def _described(area: Buffer, place: Placement) -> Buffer:
    """Say what was found out about a buffer once it is populated."""
    source = area.source
    if place.reason:
        source += f" ({place.reason})"
    if place.misplaced_pages:
        source += f", {place.misplaced_pages} pages on another node"
    huge = huge_bytes(area.address, area.size)
    if area.pages != "4K" and huge < area.size:
        source += f", {huge * 100 // area.size} % of it in huge pages"
    if area.pages == "4K" and huge:
        source += f", {huge * 100 // area.size} % of it in huge pages against our will"
    stamps = () if place.verified and not place.misplaced_pages else (UNVERIFIED,)
    return Buffer(area.address, area.size, area.pages, source, stamps)


def _pool_bytes(size: int, page_bytes: int) -> int:
    """Give the size of a pool that has this much beside its own page array."""
    align = max(page_bytes, 2 << 20)
    per_page = PAGE_SIZE - STRUCT_PAGE_SIZE
    return -(-(-(-size // per_page) * PAGE_SIZE) // align) * align


def _text(path: str) -> str | None:
    try:
        return Path(path).read_text()
    except OSError:
        return None
