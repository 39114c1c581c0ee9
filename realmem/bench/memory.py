"""The memory under a measurement: on one node, of one page size, touched beforehand."""

from __future__ import annotations

import ctypes
import mmap
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from realmem.bench.results import UNVERIFIED

HUGE = 2 << 20


@dataclass(frozen=True)
class Buffer:
    """
    Writable, populated memory.

    :ivar address: of its first byte, aligned to its page size.
    :ivar size: in bytes.
    :ivar pages: ``"4K"``, ``"2M"`` or ``"1G"``.
    :ivar source: where it comes from, in words.
    :ivar stamps: what could not be made sure of.
    """

    address: int
    size: int
    pages: str
    source: str
    stamps: tuple[str, ...]


@contextmanager
def buffer(node: int, size: int, pages: str) -> Iterator[Buffer]:
    """
    Provide memory on a node for the length of a ``with`` block.

    :param node: host node.
    :param size: bytes.
    :param pages: page kind.
    """
    area = mmap.mmap(-1, size + HUGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    try:
        area.madvise(mmap.MADV_NOHUGEPAGE if pages == "4K" else mmap.MADV_HUGEPAGE)
        start = ctypes.addressof(ctypes.c_char.from_buffer(area))
        address = (start + HUGE - 1) & -HUGE
        ctypes.memset(address, 1, size)
        yield Buffer(address, size, pages, "anonymous memory", (UNVERIFIED,))
    finally:
        area.close()
