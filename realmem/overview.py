"""What a machine tells of itself: counters, files, what its host had to do, the recount."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

    from realmem._core.pages import PageAllocator
    from realmem._core.quicklists import Quicklists
    from realmem._core.vmalloc import VmallocSpace
    from realmem.node import Node, Zone
    from realmem.paging import Paging
    from realmem.pool import Pool
    from realmem.process import ProcessTable
    from realmem.slab import SlabCaches


class Overview:
    """The part of Machine that changes nothing."""

    if TYPE_CHECKING:
        nodes: list[Node]
        _allocator: PageAllocator
        _paging: Paging | None
        _pool: Pool
        _process_table: ProcessTable | None
        _slab: SlabCaches
        _vmalloc: VmallocSpace
        _windows: tuple[int, int | None]
        _zones: dict[int, Zone]

    @property
    def unverified(self) -> str | None:
        """Why the placement of memory could not be checked, or None."""
        return next((p.reason or "unknown" for p in self._pool.placement if not p.verified), None)

    @property
    def emulated(self) -> bool:
        """Whether any node has to share a host node."""
        return any(node.emulated for node in self.nodes)

    @property
    def hoststat(self) -> Mapping[str, int]:
        """
        What the machine cost the host: faults taken, maps made, pages misplaced.

        ``mprotect`` counts changes of access by userfaultfd, too, and ``sigsegv`` its SIGBUS.
        ``donation`` counts copies that went to the other owner of a page, so that who wrote to
        it needed no map.
        ``host_vmas`` is of all machines of this host process, as the host's limit is.
        """
        from realmem._core.space import host_vmas

        self._allocator.check_alive()
        events = self._allocator.events()
        counts = {
            name: events[name]
            for name in (
                "sigsegv",
                "map_fill",
                "map_flush",
                "mprotect",
                "uffd_continue",
                "spurious",
                "forbidden",
                "donation",
            )
        }
        counts["misplaced_pages"] = sum(node.misplaced_pages for node in self.nodes)
        counts["host_vmas"] = int(host_vmas())
        if self._process_table is not None:
            counts.update(self._process_table.hoststat())
        return counts

    @property
    def vmstat(self) -> Mapping[str, int]:
        """Counters by their names in Linux's ``/proc/vmstat``."""
        from realmem.vmstat import VmStat

        self._allocator.check_alive()
        return VmStat(self)

    @property
    def quicklists(self) -> Quicklists:
        """The per-CPU lists of zeroed pages that feed page tables."""
        from realmem._core.quicklists import Quicklists

        self._allocator.check_alive()
        return Quicklists(self._allocator)

    @property
    def committed_pages(self) -> int:
        """Pages promised to processes (vm_committed_as)."""
        self._allocator.check_alive()
        mmu = None if self._paging is None else self._paging.mmu
        return 0 if mmu is None else mmu.committed

    @property
    def vmalloc_base(self) -> int:
        """Host address of VMALLOC_START; 0 until the vmalloc area is first used."""
        self._allocator.check_alive()
        return self._vmalloc.base

    @property
    def vmalloc_space(self) -> int:
        """
        Bytes of addresses that the vmalloc area has, or would ask for when it is first used.

        It is as large as a process's window, 512 GiB at most, and halved as that is.
        """
        self._allocator.check_alive()
        return self._vmalloc.length or min(self._windows[0], 1 << 39)

    @property
    def procfs(self) -> Any:
        """The files under ``/proc`` as Linux would print them."""
        from realmem.procfs import ProcFS

        self._allocator.check_alive()
        return ProcFS(self)

    @property
    def sysfs(self) -> Any:
        """The files under ``/sys`` as Linux would print them."""
        from realmem.procfs import SysFS

        self._allocator.check_alive()
        return SysFS(self)

    def check(self) -> None:
        """
        Recount every frame, list and counter.

        :raises InvariantError: names the first that is wrong.
        """
        from realmem._core.check import check
        from realmem._core.check_mm import check_spaces

        self._allocator.check_alive()
        check(self._allocator)
        self._slab.reports.collect()
        self._slab.core.check()
        if self._process_table is not None:
            self._process_table.check()
        elif self._paging is not None and self._paging.mmu is not None:
            check_spaces(self._paging.mmu, [])

    def zone_by_index(self, index: int) -> Zone:
        """Give a zone by nid * 4 + kind."""
        return self._zones[index]

    def mappings_of(self, pfn: int) -> list[tuple[int, int]]:
        """List the (pid, address) pairs that map a frame."""
        return [] if self._process_table is None else self._process_table.mappings_of(pfn)
