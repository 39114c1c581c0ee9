"""The system calls of a process that change its address space, as methods."""

from __future__ import annotations

from typing import TYPE_CHECKING

from realmem.mm.brk import brk, sbrk
from realmem.mm.mmap import mmap
from realmem.mm.mprotect import mprotect
from realmem.mm.mremap import mremap
from realmem.mm.mseal import mseal
from realmem.mm.munmap import munmap

if TYPE_CHECKING:
    from realmem.mm.address_space import MemoryMap


class SystemCalls:
    """
    Linux's memory calls.

    Each is done fully or not at all, whatever interrupts it; one that Linux does piece by piece
    leaves what Linux leaves when it fails.  Arguments are taken as C passes them.

    :ivar mm: the address space.
    """

    mm: MemoryMap

    def mmap(
        self,
        addr: int | None,
        length: int,
        prot: int,
        flags: int,
        file: object = None,
        offset: int = 0,
    ) -> int:
        """
        Map anonymous memory or a file, private or shared.

        Compare mm/mmap.c:do_mmap().

        :param addr: hint, or with MAP_FIXED the place; None is 0.
        :param length: bytes, rounded up to pages.
        :param prot: PROT_* bits.
        :param flags: MAP_* bits.
        :param file: without MAP_ANONYMOUS: a path, file object or descriptor of a regular file or
            of /dev/zero.
        :param offset: into the file, in bytes.
        :return: the address.
        :raises OSError: as Linux's; EOPNOTSUPP for other devices.
        """
        self.mm.core.check_alive()
        return mmap(self.mm, addr, length, prot, flags, file, offset)

    def munmap(self, addr: int, length: int) -> None:
        """
        Unmap a range; what is mapped in part is split.

        :raises OSError: EINVAL, ENOMEM or EPERM, as Linux's.
        """
        self.mm.core.check_alive()
        munmap(self.mm, addr, length)

    def mremap(
        self,
        old: int,
        old_size: int,
        new_size: int,
        flags: int = 0,
        new_addr: int | None = 0,
    ) -> int:
        """
        Resize a mapping, or move it.

        Compare mm/mremap.c:do_mremap().

        :param flags: MREMAP_* bits.
        :param new_addr: where to, with MREMAP_FIXED; a hint with MREMAP_DONTUNMAP alone.
        :return: where it is now.
        :raises OSError: EINVAL, EFAULT, ENOMEM, EAGAIN or EPERM, as Linux's.
        """
        self.mm.core.check_alive()
        return mremap(self.mm, old, old_size, new_size, flags, new_addr)

    def mprotect(self, addr: int, length: int, prot: int) -> None:
        """
        Change the rights of a range.

        :param prot: PROT_* bits, PROT_GROWSDOWN for the whole of a stack below.
        :raises OSError: as Linux's; VMAs before the one that refused have the new rights.
        """
        self.mm.core.check_alive()
        mprotect(self.mm, addr, length, prot)

    def mseal(self, addr: int, length: int, flags: int = 0) -> None:
        """
        Seal a range: its VMAs can no longer be unmapped, moved, or given other rights.

        :param flags: 0.
        :raises OSError: EINVAL, or ENOMEM for a hole.
        """
        self.mm.core.check_alive()
        mseal(self.mm, addr, length, flags)

    def brk(self, addr: int = 0) -> int:
        """
        Move the program break: the raw call, which never fails.

        :return: the break in force.
        """
        self.mm.core.check_alive()
        return brk(self.mm, addr)

    def sbrk(self, increment: int) -> int:
        """
        Move the program break by so many bytes.

        :return: the break before.
        :raises OSError: ENOMEM.
        """
        self.mm.core.check_alive()
        return sbrk(self.mm, increment)
