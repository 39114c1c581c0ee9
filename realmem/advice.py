"""The system calls of a process that say how its memory is to be treated, as methods."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from realmem.mm import madvise as advising
from realmem.mm import mincore as looking
from realmem.mm import mlock as locking
from realmem.mm.prctl import prctl

if TYPE_CHECKING:
    from realmem.mm.address_space import MemoryMap


class AdviceCalls:
    """
    Advice, locks, and what is in memory.

    :ivar mm: the address space.
    """

    mm: MemoryMap

    def madvise(self, addr: int, length: int, advice: int) -> None:
        """
        Advise on a range.

        Compare mm/madvise.c:do_madvise().

        :param advice: one of MADV_*.
        :raises OSError: as Linux's; after ENOMEM for a hole the rest of the range is advised.
        """
        advising.madvise(self.mm, addr, length, advice)

    def process_madvise(
        self, ranges: Iterable[tuple[int, int]], advice: int, target: AdviceCalls | None = None
    ) -> int:
        """
        Advise on several ranges, of this process or of another one.

        Compare mm/madvise.c:process_madvise().

        :param ranges: pairs (address, length), up to 1024.
        :param advice: one of MADV_*; of another process MADV_COLD, MADV_PAGEOUT, MADV_WILLNEED
            or MADV_COLLAPSE.
        :param target: the other process; None is this one.
        :return: bytes of the ranges that were advised, up to one that failed.
        :raises OSError: as Linux's, where the first range fails; EPERM, another process without
            CAP_SYS_NICE.
        """
        self.mm.core.check_alive()
        if target is None or target is self:
            return advising.process_madvise(self.mm, ranges, advice)
        return advising.process_madvise(target.mm, ranges, advice, asker=self.mm)

    def mincore(self, addr: int, length: int) -> bytes:
        """
        Tell which pages of a range are in memory.

        :return: a byte for each page: 1 or 0.
        :raises OSError: EINVAL, not aligned; ENOMEM, a hole.
        """
        return looking.mincore(self.mm, addr, length)

    def msync(self, addr: int, length: int, flags: int) -> None:
        """
        Write a range back; anonymous memory has nowhere to go.

        :param flags: MS_* bits.
        :raises OSError: EINVAL; ENOMEM, a hole; EBUSY, MS_INVALIDATE of what is locked.
        """
        looking.msync(self.mm, addr, length, flags)

    def mlock(self, addr: int, length: int) -> None:
        """
        Keep a range in memory, and bring it in.

        :raises OSError: EPERM, EINVAL, ENOMEM or EAGAIN, as Linux's; what comes before a hole
            stays locked.
        """
        locking.mlock(self.mm, addr, length)

    def mlock2(self, addr: int, length: int, flags: int = 0) -> None:
        """
        Keep a range in memory.

        :param flags: MLOCK_ONFAULT locks each page as it is first touched.
        :raises OSError: as mlock(), and EINVAL for other flags.
        """
        locking.mlock2(self.mm, addr, length, flags)

    def munlock(self, addr: int, length: int) -> None:
        """
        Let a range go from memory again.

        :raises OSError: EINVAL; ENOMEM, a hole, or vm.max_map_count.
        """
        locking.munlock(self.mm, addr, length)

    def mlockall(self, flags: int) -> None:
        """
        Keep in memory what is mapped, what will be, or both.

        :param flags: MCL_* bits.
        :raises OSError: EINVAL, flags; EPERM or ENOMEM, RLIMIT_MEMLOCK.
        """
        locking.mlockall(self.mm, flags)

    def munlockall(self) -> None:
        """Undo mlock() and mlockall()."""
        locking.munlockall(self.mm)

    def prctl(self, option: int, *args: object) -> int:
        """
        Set or ask what concerns the whole process, or name a range.

        PR_SET_VMA (PR_SET_VMA_ANON_NAME, address, length, a str or None), PR_SET_THP_DISABLE,
        PR_GET_THP_DISABLE, PR_SET_MEMORY_MERGE, PR_GET_MEMORY_MERGE.

        :param args: Linux's second to fifth argument; missing ones are 0.
        :return: 0, or what was asked.
        :raises OSError: EINVAL, an option or argument; what naming raises.
        """
        return prctl(self.mm, option, *args)
