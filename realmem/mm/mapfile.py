"""What stands behind a mapping that is not MAP_ANONYMOUS: a regular file, or /dev/zero."""

from __future__ import annotations

import errno
import fcntl
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from realmem.arguments import as_int
from realmem.layout import (
    MAP_32BIT,
    MAP_ABOVE4G,
    MAP_ANONYMOUS,
    MAP_DENYWRITE,
    MAP_EXECUTABLE,
    MAP_FIXED,
    MAP_GROWSDOWN,
    MAP_HUGE_1GB,
    MAP_HUGE_2MB,
    MAP_HUGETLB,
    MAP_LOCKED,
    MAP_NONBLOCK,
    MAP_NORESERVE,
    MAP_POPULATE,
    MAP_PRIVATE,
    MAP_SHARED,
    MAP_SHARED_VALIDATE,
    MAP_STACK,
    MAP_TYPE,
    MAP_UNINITIALIZED,
    PAGE_SHIFT,
    PROT_WRITE,
)
from realmem.mm.draft import fail
from realmem.mm.vma import (
    VM_EXEC,
    VM_GROWSDOWN,
    VM_MAYEXEC,
    VM_MAYSHARE,
    VM_MAYWRITE,
    VM_SHARED,
)

# include/linux/mman.h: what MAP_SHARED ignores nothing of.
LEGACY_MAP_MASK = (
    MAP_SHARED | MAP_PRIVATE | MAP_FIXED | MAP_ANONYMOUS | MAP_DENYWRITE | MAP_EXECUTABLE
    | MAP_UNINITIALIZED | MAP_GROWSDOWN | MAP_LOCKED | MAP_NORESERVE | MAP_POPULATE
    | MAP_NONBLOCK | MAP_STACK | MAP_HUGETLB | MAP_32BIT | MAP_ABOVE4G | MAP_HUGE_2MB
    | MAP_HUGE_1GB
)  # fmt: skip
MAX_LFS_FILESIZE = (1 << 63) - 1
ULONG_MAX = (1 << 64) - 1
F_SEAL_FUTURE_WRITE = 0x10
ZERO = os.makedev(1, 5)
# Character devices that no one can map: null, full, random, urandom, kmsg.
UNMAPPABLE = {os.makedev(1, minor) for minor in (3, 7, 8, 9, 11)}


@dataclass(frozen=True, slots=True)
class Opened:
    """
    A file as mmap() sees it.

    :ivar fd: open as long as the call runs.
    :ivar path: as /proc/PID/maps would show it.
    :ivar key: (device, inode number).
    :ivar zero: whether it is /dev/zero.
    """

    fd: int
    path: str
    key: tuple[int, int]
    mode: int
    rdev: int
    readable: bool
    writable: bool
    noexec: bool
    sealed: bool

    @property
    def regular(self) -> bool:
        """Whether it is a regular file."""
        return stat.S_ISREG(self.mode)

    @property
    def zero(self) -> bool:
        """Whether it is /dev/zero."""
        return stat.S_ISCHR(self.mode) and self.rdev == ZERO

    def check(self, flags: int, prot: int, vm_flags: int, length: int, pgoff: int) -> int:
        """
        Refuse what this file can't be mapped as (the file's part of mm/mmap.c:do_mmap()).

        :return: the VM_* bits that it is mapped with.
        """
        largest = MAX_LFS_FILESIZE
        if not (stat.S_ISREG(self.mode) or stat.S_ISBLK(self.mode) or stat.S_ISSOCK(self.mode)):
            largest = ULONG_MAX
        if length > largest or pgoff > (largest - length) >> PAGE_SHIFT:
            fail(errno.EOVERFLOW, "offset")
        kind = flags & MAP_TYPE
        if kind in (MAP_SHARED, MAP_SHARED_VALIDATE):
            if kind == MAP_SHARED_VALIDATE and flags & ~LEGACY_MAP_MASK:
                fail(errno.EOPNOTSUPP, "a flag that MAP_SHARED_VALIDATE does not know")
            if prot & PROT_WRITE and not self.writable:
                fail(errno.EACCES, "not opened for writing")
            if self.sealed:
                if prot & PROT_WRITE:
                    fail(errno.EPERM, "sealed against writing")
                vm_flags &= ~VM_MAYWRITE
            vm_flags |= VM_SHARED | VM_MAYSHARE
            if not self.writable:
                vm_flags &= ~(VM_MAYWRITE | VM_SHARED)
        elif kind != MAP_PRIVATE:
            fail(errno.EINVAL, "neither MAP_SHARED nor MAP_PRIVATE")
        if not self.readable:
            fail(errno.EACCES, "not opened for reading")
        if self.noexec:
            if vm_flags & VM_EXEC:
                fail(errno.EPERM, "on a file system mounted noexec")
            vm_flags &= ~VM_MAYEXEC
        regular = stat.S_ISREG(self.mode) or stat.S_ISBLK(self.mode) or stat.S_ISCHR(self.mode)
        if not regular or (stat.S_ISCHR(self.mode) and self.rdev in UNMAPPABLE):
            fail(errno.ENODEV, "it cannot be mapped")
        if vm_flags & VM_GROWSDOWN:
            fail(errno.EINVAL, "MAP_GROWSDOWN of a file")
        if not self.regular and not self.zero:
            fail(errno.EOPNOTSUPP, "neither a regular file nor /dev/zero")
        return vm_flags

    @contextmanager
    def frames(self, core: Any, flags: int) -> Iterator[Any]:
        """
        Give the frames of a regular file, which stay while the call runs.

        :param core: of the address space that is to map it.
        :param flags: MAP_* bits.
        :raises OSError: EMFILE, no descriptor is left to keep it open by.
        """
        inode = core.inode(self.key, self.fd)
        try:
            shared = flags & MAP_TYPE in (MAP_SHARED, MAP_SHARED_VALIDATE)
            inode.open(self.fd, shared and self.writable and not self.sealed)
            yield inode
        finally:
            inode.users -= 1
            inode.rest()


@contextmanager
def opened(file: Any, flags: int, prot: int) -> Iterator[Opened]:
    """
    Look at the ``file`` argument of mmap(): a path, a file object or a descriptor.

    :raises OSError: EBADF, no open file; what open() says of a path.
    """
    if file is None:
        fail(errno.EBADF, "no file, and no MAP_ANONYMOUS")
    if isinstance(file, (str, bytes, os.PathLike)):
        shared = flags & MAP_TYPE in (MAP_SHARED, MAP_SHARED_VALIDATE)
        fd = os.open(file, os.O_RDWR if shared and prot & PROT_WRITE else os.O_RDONLY)
        try:
            yield _look(fd)
        finally:
            os.close(fd)
    else:
        fd = file.fileno() if hasattr(file, "fileno") else as_int(file, "file")
        if not 0 <= fd < 1 << 31:
            fail(errno.EBADF, f"descriptor {fd}")
        yield _look(fd)


def _look(fd: int) -> Opened:
    status = fcntl.fcntl(fd, fcntl.F_GETFL)
    if status & os.O_PATH:
        fail(errno.EBADF, "opened with O_PATH")
    what = os.fstat(fd)
    access = status & os.O_ACCMODE
    noexec = bool(os.fstatvfs(fd).f_flag & os.ST_NOEXEC)
    return Opened(
        fd,
        os.readlink(f"/proc/self/fd/{fd}"),  # noqa: PTH115
        (what.st_dev, what.st_ino),
        what.st_mode,
        what.st_rdev,
        access in (os.O_RDONLY, os.O_RDWR),
        access in (os.O_WRONLY, os.O_RDWR),
        noexec,
        _is_sealed(fd),
    )


def _is_sealed(fd: int) -> bool:
    """Whether a memfd takes no more writes (mm/memfd.c:memfd_check_seals_mmap())."""
    try:
        seals = fcntl.fcntl(fd, fcntl.F_GET_SEALS)
    except OSError:
        return False                # no memfd
    return bool(seals & (fcntl.F_SEAL_WRITE | F_SEAL_FUTURE_WRITE))
