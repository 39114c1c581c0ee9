"""A machine's part in paging, which its processes and its vmalloc area share."""

from __future__ import annotations

import errno
import threading
from pathlib import Path
from typing import TYPE_CHECKING

from realmem._core import faults
from realmem._core.mmu import Mmu
from realmem.backends import SIGSEGV, USERFAULTFD, refusal
from realmem.errors import HostError

if TYPE_CHECKING:
    from realmem._core.pages import PageAllocator
    from realmem.mm.settings import VmSettings
    from realmem.pool import Pool
    from realmem.thp import ThpSettings


class Paging:
    """
    The kernel's page tables, made when something is first mapped, and the limits of windows.

    :param core: the machine's allocator.
    :param pool: its memory.
    :param window: bytes of host address space a process; a power of two from 1G.
    :param host_vmas: budget of host VMAs; None is half of the host's ``vm.max_map_count``.
    :param settings: the machine's sysctls, which the kernel side is told of.
    :param thp: which folios it may fault in, likewise.
    :param debug: from 1 on, what changes of VMAs come to is compared with what was planned.
    :param backend: ``"sigsegv"`` or ``"userfaultfd"``.
    :ivar window: bytes of host address space a process.
    """

    def __init__(
        self,
        core: PageAllocator,
        pool: Pool,
        window: int,
        host_vmas: int | None,
        settings: VmSettings,
        thp: ThpSettings,
        debug: int = 0,
        backend: str = SIGSEGV,
    ) -> None:
        self.settings = settings
        self.thp = thp
        self._core = core
        self._pool = pool
        self.window = window
        self._debug = debug
        self._backend = backend
        self._vma_budget = default_vma_budget() if host_vmas is None else host_vmas
        self._lock = threading.Lock()
        self.mmu: Mmu | None = None

    @property
    def nr_nodes(self) -> int:
        """How many nodes the machine has."""
        return len(self._pool.nodes)

    @property
    def nodes_with_memory(self) -> frozenset[int]:
        """The nodes that have memory."""
        return frozenset(nid for nid, fd in enumerate(self._pool.fds) if fd >= 0)

    def start(self) -> Mmu:
        """
        Give the part in paging; the first time, take SIGSEGV and make the kernel's page tables.

        :raises OutOfMemory: no frames for them.
        :raises HostError: a backing of which single pages cannot be mapped.
        """
        if self._pool.hugetlb:
            raise HostError(
                errno.EOPNOTSUPP,
                "windows of a machine on hugetlb backing are not there yet: use backing='4K'",
            )
        faults.install()
        if self._backend == USERFAULTFD:
            faults.install_bus()
        with self._lock:
            if self.mmu is None:
                mmu = Mmu(self._core, self._pool.fds, self._vma_budget, self._debug > 0)
                why = mmu.open_userfaultfd() if self._backend == USERFAULTFD else 0
                if why:
                    mmu.close()
                    raise refusal(why)
                self.mmu = mmu
            if self.settings.mmu is not self.mmu:
                self.settings.attach(self.mmu)
                self.thp.attach(self.mmu)
            return self.mmu

    def close(self) -> None:
        """Give the page tables back; everything that is mapped was unmapped before."""
        if self.mmu is not None:
            self.settings.attach(None)
            self.thp.attach(None)
            self.mmu.close()
            self.mmu = None


def default_vma_budget() -> int:
    """Give half of the host's ``vm.max_map_count``."""
    try:
        return int(Path("/proc/sys/vm/max_map_count").read_text()) // 2
    except (OSError, ValueError):
        return 65530 // 2
