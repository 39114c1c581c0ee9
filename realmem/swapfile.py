"""
Swap files: made, checked and shown as Linux does.

Compare mm/swapfile.c, and mkswap(8) for what the first page says.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import struct
import threading
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

from realmem.layout import PAGE_SIZE
from realmem.watermark import KB_SHIFT

MAGIC = b"SWAPSPACE2"
MIN_PAGES = 10                      # mkswap's, and with it the smallest that Linux meets
MAX_PAGES = 1 << 27                 # what the kernel side numbers
MAX_PRIORITY = 32767                # SWAP_FLAG_PRIO_MASK
_INFO = struct.Struct("=III")       # version, last page, bad pages; at byte 1024


class OpenedArea(NamedTuple):
    """A file that may become a swap area: its descriptor, absolute path and pages."""

    fd: int
    path: str
    pages: int


def make(path: str | os.PathLike[str], size: int) -> None:
    """
    Make a swap file, all of whose places are there; what a file of that name held is lost.

    :param size: bytes; what is no whole page at its end is left out.
    :raises OSError: EINVAL, too small or too large; ENOSPC and what else open() and fallocate()
        say, with nothing of a new file left.
    """
    pages = size // PAGE_SIZE
    _check_pages(pages)
    existed = os.path.lexists(path)
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        _must_be_regular(fd)
        _take(fd, path)
        os.ftruncate(fd, 0)
        os.posix_fallocate(fd, 0, pages * PAGE_SIZE)
        os.pwrite(fd, _INFO.pack(1, pages - 1, 0), 1024)
        os.pwrite(fd, MAGIC, PAGE_SIZE - len(MAGIC))
    except OSError:
        if not existed:
            Path(path).unlink()
        raise
    finally:
        os.close(fd)


def open_area(path: str | os.PathLike[str]) -> OpenedArea:
    """
    Open a swap file and read what it says of itself.

    :raises OSError: EINVAL, no swap file, a smaller one than it says, or one with holes
        (mm/page_io.c:generic_swapfile_activate()); and what open() says.
    """
    fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    try:
        size = _must_be_regular(fd)
        _take(fd, path)
        header = os.pread(fd, PAGE_SIZE, 0)
        if len(header) < PAGE_SIZE or not header.endswith(MAGIC):
            raise OSError(errno.EINVAL, "no swap signature", os.fspath(path))
        version, last, bad = _INFO.unpack_from(header, 1024)
        if version != 1 or bad:
            raise OSError(errno.EINVAL, "a version or bad pages that are not known", str(path))
        _check_pages(last + 1)
        if (last + 1) * PAGE_SIZE > size:
            raise OSError(errno.EINVAL, "the swap file is shorter than it says", str(path))
        # As swapon(8) tells: places that were never written to are there all the same.
        if os.fstat(fd).st_blocks * 512 < (last + 1) * PAGE_SIZE:
            raise OSError(errno.EINVAL, "the swap file has holes", str(path))
    except BaseException:
        os.close(fd)
        raise
    return OpenedArea(fd, str(Path(path).resolve()), last + 1)


def _must_be_regular(fd: int) -> int:
    found = os.fstat(fd)
    if not stat.S_ISREG(found.st_mode):
        raise OSError(errno.EINVAL, "not a regular file")
    return found.st_size


def _take(fd: int, path: str | os.PathLike[str]) -> None:
    """Lock the file, by whatever name, for as long as it is open: nobody else swaps to it."""
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as why:
        raise OSError(errno.EBUSY, os.strerror(errno.EBUSY), os.fspath(path)) from why


def _check_pages(pages: int) -> None:
    if not MIN_PAGES <= pages <= MAX_PAGES:
        raise OSError(
            errno.EINVAL, f"a swap file has {MIN_PAGES} to {MAX_PAGES} pages, not {pages}"
        )


class Kswapd(NamedTuple):
    """
    A node's background reclaim, at one moment.

    :ivar running: whether its thread is there; it sleeps until the low watermark is reached.
    :ivar pages_scanned: pages that it looked at.
    :ivar pages_reclaimed: pages that it took back.
    """

    running: bool
    pages_scanned: int
    pages_reclaimed: int


class Swaps:
    """
    A machine's swap areas by their paths, in the order of swapon().

    :param paging: the machine's part in paging.
    :param negative: the priority of the first that asks for none; each later one has one less.
    """

    def __init__(self, paging: Any, negative: int = -2) -> None:
        self._paging = paging
        self._negative = negative
        self.areas: dict[str, Any] = {}
        self._lock = threading.Lock()

    def on(self, path: str | os.PathLike[str], size: int | None, priority: int) -> None:
        """Use a file: see ``Machine.swapon``."""
        with self._lock:
            self._on(path, size, priority)

    def _on(self, path: str | os.PathLike[str], size: int | None, priority: int) -> None:
        from realmem._core.swap_areas import SwapArea

        mmu = self._paging.start()
        name = str(Path(path).resolve())
        if name in self.areas:
            raise OSError(errno.EBUSY, os.strerror(errno.EBUSY), os.fspath(path))
        if size is not None:
            make(path, size)
        opened = open_area(path)
        if priority < 0:
            priority = self._negative - len([a for a in self.areas.values() if a.prio < 0])
        try:
            self.areas[opened.path] = SwapArea(mmu, opened.fd, opened.pages, priority)
        except BaseException:
            os.close(opened.fd)
            raise
        self._paging.settings.publish()

    def off(self, path: str | os.PathLike[str], spaces: Callable[[], Iterable[Any]]) -> None:
        """Bring everything back: see ``Machine.swapoff``."""
        with self._lock:
            self._off(path, spaces)

    def _off(self, path: str | os.PathLike[str], spaces: Callable[[], Iterable[Any]]) -> None:
        area = self.areas.get(str(Path(path).resolve()))
        if area is None:
            if not os.path.lexists(path):
                raise OSError(errno.ENOENT, os.strerror(errno.ENOENT), os.fspath(path))
            raise OSError(errno.EINVAL, "no swap area of this machine", os.fspath(path))
        area.off(spaces)
        self.areas = {name: each for name, each in self.areas.items() if each is not area}
        self._paging.settings.publish()

    def text(self) -> str:
        """Give ``/proc/swaps`` (mm/swapfile.c:swap_show()): sizes in kB."""
        lines = ["Filename\t\t\t\tType\t\tSize\t\tUsed\t\tPriority\n"]
        for path, area in self.areas.items():
            size, used = area.pages << KB_SHIFT, area.used << KB_SHIFT
            lines.append(
                f"{_octal(path)}{' ' * max(40 - len(path), 1)}file\t\t{size}\t"
                + ("" if size >= 10_000_000 else "\t")
                + f"{used}\t" + ("" if used >= 10_000_000 else "\t") + f"{area.prio}\n"
            )
        return "".join(lines)


def _octal(path: str) -> str:
    return "".join(f"\\{ord(c):03o}" if c in " \t\n\\" else c for c in path)
