"""The Machine: builds real memory, zones and allocators, and owns them."""

from __future__ import annotations

import errno
import os
import threading
import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from realmem import host
from realmem.arguments import as_bool, as_callable, as_int, as_str, as_window
from realmem.backends import choose
from realmem.layout import PAGE_SHIFT
from realmem.memmap import NodeRange, lay_out, parse_zones
from realmem.node import Node, NodeSpec, ResolvedNode, cpu_map, resolve
from realmem.overview import Overview
from realmem.slab_debug import SlabDebug, parse_slab_debug
from realmem.swapfile import MAX_PRIORITY, Kswapd, Swaps
from realmem.zonelist import build_zonelists, fallback_orders

if TYPE_CHECKING:
    from realmem._core.faults import Guard
    from realmem._core.frames import Page, PageArray
    from realmem._core.inject import Injection
    from realmem._core.kmem_cache import KmemCache
    from realmem._core.machine import AtomicContext
    from realmem._core.mmu import Mmu
    from realmem._core.pages import PageAllocator
    from realmem._core.vmalloc import VmallocSpace
    from realmem.fault_costs import FaultCosts
    from realmem.paging import Paging
    from realmem.pool import Pool
    from realmem.process import Process, ProcessTable
    from realmem.slub import SlabReport

# machine.options bits of types.pxd
_POISON, _PAGE_OWNER, _DEBUG = 1, 2, 4
DROP_CACHES_MAX = 4

class Machine(Overview):
    """
    Simulated nodes of real memory, and Linux's allocators over them.

    A context manager; several can live at once; unusable after os.fork() in the child.

    :param nodes: None for one node on each host node with memory that this process may use; a
        number, laid round-robin over them; or a list of NodeSpec.
    :param memory: bytes of each node, or a size such as ``"256M"``.
    :param seed: every decision that could vary follows from it.
    :param cpus: number of CPUs that enters list sizes; None for the machine's own.
    :param zones: see realmem.memmap.parse_zones().
    :param backing: ``"4K"``, ``"thp"``, ``"hugetlb-2M"`` or ``"hugetlb-1G"``.
    :param poison: fill freed memory and check it when it is given out again.
    :param page_owner: remember where each block was allocated.
    :param slab_debug: which slab caches are debugged, in the syntax of Linux's boot option:
        ``"FZPU"``, ``"FZ,kmalloc-*,dentry;P,inode_cache"``; see realmem.slab_debug.
    :param debug: 1 balances the counters after each operation, 2 recounts everything, after
        processes' calls and software accesses as well; with either, changes of processes' VMAs
        come to what was planned.
    :param mlock: keep the host from swapping the memory.
    :param window: host address space a process, a power of two from 1G; halved when refused.
    :param faults: how raw faults are filled: ``"sigsegv"`` (mprotect and mmap), ``"userfaultfd"``,
        or ``"auto"``, which is userfaultfd where the host allows it.
    :ivar faults: which of the two it became.
    :param host_vmas: budget of host VMAs for windows; None is half of ``vm.max_map_count``.
    :param progress: called with (node, bytes done, bytes) while memory is populated; None
        draws a bar on a terminal when it takes long.
    :raises HostError: the host has not got the memory or refuses; says what to change.
    :raises ValueError: impossible sizes, nodes, CPUs or zones.
    :raises TypeError: wrong types, unknown options.
    """

    # The compiled allocator's methods, bound once as the machine's own, so that a call from
    # Python goes straight to compiled code; realmem/_core/pages.pyi has their signatures.
    alloc_pages: Callable[..., Page]
    alloc_pages_node: Callable[..., Page]
    alloc_page_interleave: Callable[..., Page]
    alloc_pages_exact: Callable[..., int]
    alloc_pages_bulk: Callable[..., PageArray]
    get_free_pages: Callable[..., int]
    get_zeroed_page: Callable[..., int]
    free_pages: Callable[..., None]
    free_page: Callable[..., None]
    free_pages_bulk: Callable[..., None]
    drain_all_pages: Callable[[], None]
    va: Callable[[int], int]
    pa: Callable[[int], int]
    virt_to_page: Callable[[int], Page]
    pfn_to_page: Callable[[int], Page]
    view: Callable[[int, int], memoryview]
    vmalloc: Callable[..., int]
    vzalloc: Callable[..., int]
    vmalloc_node: Callable[..., int]
    vzalloc_node: Callable[..., int]
    vfree: Callable[[int | None], None]
    kvmalloc: Callable[..., int]
    kvzalloc: Callable[..., int]
    kvfree: Callable[[int | None], None]
    vmap: Callable[..., int]
    vunmap: Callable[[int | None], None]
    vm_map_ram: Callable[..., int]
    vm_unmap_ram: Callable[[int, int], None]
    vm_unmap_aliases: Callable[[], None]
    vmalloc_to_page: Callable[[int], Page]
    vmalloc_to_pfn: Callable[[int], int]
    is_vmalloc_addr: Callable[[int], bool]
    guard: Callable[[], Guard]

    # ... and those of realmem/_core/kmem.pyi.
    kmalloc: Callable[..., int]
    kzalloc: Callable[..., int]
    kcalloc: Callable[..., int]
    krealloc: Callable[..., int]
    kmalloc_node: Callable[..., int]
    kfree: Callable[[int], None]
    ksize: Callable[[int], int]

    def __init__(
        self,
        nodes: int | Sequence[NodeSpec] | None = None,
        memory: int | str = "256M",
        *,
        seed: int = 0,
        cpus: int | None = None,
        zones: Mapping[str, int | str] | None = None,
        backing: str = "4K",
        poison: bool = False,
        page_owner: bool = False,
        slab_debug: str = "",
        debug: int = 0,
        mlock: bool = False,
        window: int | str = "64G",
        faults: str = "sigsegv",
        host_vmas: int | None = None,
        progress: Callable[[int, int, int], None] | None = None,
    ) -> None:
        debug = as_int(debug, "debug", 0, 2)
        poison, page_owner = as_bool(poison, "poison"), as_bool(page_owner, "page_owner")
        mlock = as_bool(mlock, "mlock")
        checks = parse_slab_debug(as_str(slab_debug, "slab_debug"))
        if progress is not None:
            as_callable(progress, "progress")
        self._closed = False
        self._pid = os.getpid()
        self.seed = as_int(seed, "seed")
        self.backing = as_str(backing, "backing")
        self.faults = choose(as_str(faults, "faults"))
        self._windows = (
            as_window(window),
            None if host_vmas is None else as_int(host_vmas, "host_vmas", 1),
        )
        self._paging: Paging | None = None
        self._swaps: Swaps | None = None
        self._process_table: ProcessTable | None = None
        self._making = threading.RLock()        # of what is made when it is first needed
        self._finishing = threading.Lock()      # taken once, by whoever closes
        places = resolve(nodes, memory, host)
        ranges = lay_out([place.memory for place in places], parse_zones(zones))
        self.cpus = self._nr_cpus(cpus, places)
        held: list[Pool] = []
        try:
            _take_memory(places, ranges, backing, mlock, progress, held)
            self._pool = held[0]
            self._build(
                places, ranges,
                poison * _POISON | page_owner * _PAGE_OWNER | (debug > 0) * _DEBUG, checks)
        except BaseException:
            for pool in held:
                pool.close()
            raise
        if page_owner:
            self._allocator.track_owners()
        self._debug = debug
        self._bind(debug)

    def nr_cpus_of(self, nid: int) -> int:
        """Give how many CPUs of a node enter its list sizes: its share of the cpus option."""
        with_cpus = [node.id for node in self.nodes if node.cpus]
        if self.cpus == sum(len(node.cpus) for node in self.nodes) or nid not in with_cpus:
            return len(self.nodes[nid].cpus)
        size, rest = divmod(self.cpus, len(with_cpus))
        return size + (with_cpus.index(nid) < rest)

    @staticmethod
    def _nr_cpus(cpus: int | None, places: Sequence[ResolvedNode]) -> int:
        if cpus is None:
            return len(host.present_cpus())
        return as_int(cpus, "cpus", 1, 8192)

    def _build(
        self,
        places: Sequence[ResolvedNode],
        ranges: Sequence[NodeRange],
        options: int,
        checks: SlabDebug,
    ) -> None:
        from realmem._core.kvmalloc import KvMalloc
        from realmem._core.pages import PageAllocator
        from realmem._core.vmalloc import VmallocSpace
        from realmem.slab import SlabCaches
        from realmem.sysctl import boot_sysctl
        from realmem.thp import boot_thp

        orders = fallback_orders(
            [place.distance for place in places],
            [place.memory > 0 for place in places],
            [bool(place.cpus) for place in places],
        )
        managed = [pages for where in ranges for pages in where.managed]
        nodes_of_cpus = cpu_map(places, host)
        self._cpu_to_node = {cpu: nodes_of_cpus[cpu] for cpu in host.present_cpus()}
        self._allocator = PageAllocator(
            weakref.ref(self),
            self._pool.direct_map,
            self._pool.vmemmap,
            [
                (p.host_node, p.emulated, len(p.cpus), w.start_pfn, w.pages, w.memmap_pfn,
                 w.memmap_pages)
                for p, w in zip(places, ranges, strict=True)
            ],
            [zone for where in ranges for zone in where.zones],
            build_zonelists(orders, managed),
            nodes_of_cpus,
            options,
        )
        self._vmalloc = VmallocSpace(self._allocator, weakref.WeakMethod(self._start_paging))
        # Frames and structures go together, whoever lets go last.
        self._keeper = _Keeper(self._pool, self._vmalloc)
        self._allocator.keep(self._keeper)
        self.nodes = [
            Node(self, nid, place, where, self._pool.placement[nid].misplaced_pages)
            for nid, (place, where) in enumerate(zip(places, ranges, strict=True))
        ]
        self._zones = {zone.index: zone for node in self.nodes for zone in node.zones}
        self.fallback_orders = orders
        self.sysctl = boot_sysctl(self)
        self.thp = boot_thp(self)
        self._slab = SlabCaches(self._allocator, self.cpus, checks)
        self._kvmalloc = KvMalloc(self._slab.core, self._vmalloc)

    def _bind(self, debug: int) -> None:
        faces = (self._allocator, self._slab.kmalloc, self._vmalloc, self._kvmalloc)
        for name in Machine.__annotations__:
            method = next(getattr(face, name) for face in faces if hasattr(face, name))
            setattr(self, name, self._checked(method, debug) if debug else method)

    def _checked(self, method: Callable[..., Any], debug: int) -> Callable[..., Any]:
        from realmem._core.check import check, check_counts

        verify = check if debug == 2 else check_counts
        core = self._allocator

        def call(*args: Any, **kwargs: Any) -> Any:
            result = method(*args, **kwargs)
            verify(core)
            return result

        call.__doc__ = method.__doc__
        return call

    # ---- for compiled users ----

    @property
    def core(self) -> PageAllocator:
        """The compiled core, for code that cimports the allocators (realmem.get_include())."""
        self._allocator.check_alive()
        return self._allocator

    @property
    def vmalloc_area(self) -> VmallocSpace:
        """
        The vmalloc area, for code that cimports vmalloc() and kvmalloc().

        :raises HostError: no host address space for it.
        :raises OutOfMemory: no memory to describe it.
        """
        self._vmalloc.start_area()
        return self._vmalloc

    # ---- slab caches ----

    @property
    def kmem_cache_create(self) -> Callable[..., KmemCache]:
        """Make a slab cache; see realmem.slab.SlabCaches.create()."""
        self._allocator.check_alive()
        return self._slab.create

    @property
    def kmem_caches(self) -> Mapping[str, KmemCache]:
        """Slab caches by name, generic and dedicated ones."""
        self._allocator.check_alive()
        return self._slab.by_name

    @property
    def slab_reports(self) -> list[SlabReport]:
        """What the checks of debugged slab caches found, the oldest first; 256 are kept."""
        self._allocator.check_alive()
        return self._slab.reports.all()

    # ---- processes ----

    def spawn(self, name: str = "init", node: int | None = None, uid: int = 0) -> Process:
        """
        Start a process with an empty address space.

        The first one installs the fault handler.

        :param name: for people.
        :param node: where its software accesses allocate from; None is the calling CPU's node.
        :param uid: 0 has every capability.
        :raises OutOfMemory: no frames for its page tables.
        :raises HostError: no host address space for its window.
        """
        self._allocator.check_alive()
        process = self._processes_here().spawn(name, node, uid)
        if self._debug == 2:
            self.check()
        return process

    def _processes_here(self) -> ProcessTable:
        """Give the table of processes; two would not know of each other's."""
        if self._process_table is None:
            from realmem.process import Process, ProcessTable

            kind = Process
            if self._debug == 2:
                from realmem.recount import RecountedProcess as kind
            table = ProcessTable(self._allocator, self._get_paging(), weakref.ref(self), kind)
            with self._making:
                if self._process_table is None:
                    self._process_table = self._keeper.processes = table
        return self._process_table

    def _get_paging(self) -> Paging:
        if self._paging is None:
            from realmem.paging import Paging

            paging = Paging(
                self._allocator,
                self._pool,
                *self._windows,
                self.sysctl.settings,
                self.thp,
                self._debug,
                self.faults,
            )
            with self._making:
                if self._paging is None:
                    self._paging = self._keeper.paging = paging
        return self._paging

    def _start_paging(self) -> tuple[Mmu, int]:
        paging = self._get_paging()
        return paging.start(), paging.window

    @property
    def processes(self) -> Mapping[int, Process]:
        """Live processes by pid."""
        self._allocator.check_alive()
        return {} if self._process_table is None else dict(self._process_table.live)

    def show_mem(self) -> str:
        """Describe free memory the way the kernel does when an allocation fails."""
        from realmem.showmem import show_mem

        return show_mem(self)

    def fault_costs(self, way: str | None = None) -> FaultCosts:
        """
        Tell what page faults cost since the first process was made, down to their parts.

        Every fault that was served is counted, unless the host refused the room for the first
        on its CPU's node; of a process's raw ones, and of its software ones, the first 256 are
        timed, then every 16th.  ``print()`` gives a table.

        :param way: ``"raw"`` for those of real loads and stores, ``"software"`` for those of the
            software MMU, None for both.
        :return: dict keyed (kind, order, cpu_node, memory_node), see realmem.fault_costs; its
            values have ``.count`` and for each part a histogram with ``.percentile(q)`` in ns.
        :raises ValueError: another ``way``.
        """
        from realmem.fault_costs import fault_costs

        self._allocator.check_alive()
        return fault_costs(None if self._paging is None else self._paging.mmu, way)

    @property
    def cow_placement(self) -> str:
        """
        Where a copy goes when copy-on-write breaks.

        ``"policy"`` is Linux's: where any other page of the VMA would come from.  ``"local"`` is
        the node of the CPU that stores, whatever the policy.  ``"source"`` is the node of the
        page that is copied, mostly the parent's.
        """
        self._allocator.check_alive()
        return self.sysctl.settings.cow_placement

    @cow_placement.setter
    def cow_placement(self, where: str) -> None:
        self._allocator.check_alive()
        self.sysctl.settings.set_cow_placement(where)

    def drop_caches(self, which: int) -> None:
        """
        Give up what can be had again (fs/drop_caches.c).

        :param which: 1: frames that equal their file and that no process maps; 2: slabs without
            objects; 3: both; 4 more says nothing in Linux's log, and nothing here either.
        :raises OSError: EINVAL, another number.
        """
        self._allocator.check_alive()
        which = as_int(which, "which")
        if not 1 <= which <= DROP_CACHES_MAX:
            raise OSError(errno.EINVAL, f"drop_caches takes 1 to {DROP_CACHES_MAX}: {which}")
        if which & 1 and self._paging is not None and self._paging.mmu is not None:
            for inode in list(self._paging.mmu.inodes.values()):
                inode.invalidate()
        if which & 2:
            for cache in list(self.kmem_caches.values()):
                cache.shrink()

    # ---- swap and reclaim ----

    def swapon(
        self, path: str | os.PathLike[str], size: int | None = None, priority: int = -1
    ) -> None:
        """
        Have anonymous pages that were not used for long go to a file (mm/swapfile.c).

        :param path: a swap file, as mkswap(8) makes it.
        :param size: bytes; the file is made, and what it held is lost.
        :param priority: 0 to 32767; of areas that have room that of the highest is used, those
            alike in turn.  -1: below all others so far.
        :raises OSError: EINVAL, no swap file, one with holes, too small or too large, or a
            priority out of range; EBUSY, it is in use; EPERM, too many; ENOSPC and what else
            the host says.
        """
        self._allocator.check_alive()
        priority = as_int(priority, "priority")
        if not -1 <= priority <= MAX_PRIORITY:
            raise OSError(errno.EINVAL, f"a priority is -1 to {MAX_PRIORITY}: {priority}")
        self._get_swaps().on(path, None if size is None else as_int(size, "size"), priority)

    def swapoff(self, path: str | os.PathLike[str]) -> None:
        """
        Bring every page of a swap area back, and use it no more.

        :raises OSError: EINVAL, ENOENT: it is none; ENOMEM: there is no room for its pages; EIO:
            one cannot be read.  It stays a swap area then.
        """
        self._allocator.check_alive()
        live = {} if self._process_table is None else self._process_table.live
        self._get_swaps().off(path, lambda: [process.mm.core for process in list(live.values())])

    def reclaim(self, nr_pages: int, node: int | None = None) -> int:
        """
        Take back pages that were not used for long (mm/vmscan.c:user_proactive_reclaim()).

        :param nr_pages: how many are wanted.
        :param node: of which node; of all, beginning with the caller's.
        :return: pages that became free.
        :raises ValueError: no such node, or a negative number.
        """
        self._allocator.check_alive()
        nr_pages = as_int(nr_pages, "nr_pages")
        if nr_pages.bit_length() > 62:
            raise ValueError(f"more pages than there can be: {nr_pages}")
        nid = -1 if node is None else as_int(node, "node")
        if nr_pages < 0 or (node is not None and not 0 <= nid < len(self.nodes)):
            raise ValueError(f"no node {node}, or a negative number of pages: {nr_pages}")
        mmu = self._paging.mmu if self._paging is not None else None
        return 0 if mmu is None or nr_pages == 0 else int(mmu.reclaim(nr_pages, nid))

    def kswapd(self, node: int) -> Kswapd:
        """
        Look at a node's background reclaim: it runs once something could be taken back, that is
        from the first swapon() or the first mapped file on.

        :raises ValueError: no such node.
        """
        self._allocator.check_alive()
        if not 0 <= as_int(node, "node") < len(self.nodes):
            raise ValueError(f"no node {node}")
        mmu = self._paging.mmu if self._paging is not None else None
        return Kswapd(*mmu.kswapd(node)) if mmu is not None else Kswapd(False, 0, 0)

    def _get_swaps_text(self) -> str:
        return (self._swaps or Swaps(None)).text()

    def _get_swaps(self) -> Swaps:
        with self._making:
            if self._swaps is None:
                self._swaps = Swaps(self._get_paging())
            return self._swaps

    # ---- contexts ----

    def atomic_context(self) -> AtomicContext:
        """
        Mark code as not in process context: what may sleep raises AtomicContextError.

        It is a property of the calling thread; contexts nest.
        """
        from realmem._core.machine import AtomicContext

        return AtomicContext(self._allocator)

    def inject(
        self,
        point: str,
        *,
        nth: int | None = None,
        probability: float = 0.0,
        times: int | None = None,
        seed: int = 0,
    ) -> Injection:
        """
        Make attempts fail inside a ``with``, to see what becomes of them.

        Compare lib/fault-inject.c and /proc/PID/fail-nth.  A request with ``GFP.NOFAIL`` does
        not fail.  Of several at one point only the one that was entered last is in force.

        :param point: ``"page_alloc"``: each call of the page allocator is an attempt, by
            whichever thread, faults and the machine's own needs included.
        :param nth: the attempt that fails, counted from 1 on entry.
        :param probability: of each attempt to fail, instead.
        :param times: so many failures at most; None is 1 with ``nth``, no limit otherwise.
            With ``nth``, those right behind it.
        :param seed: of the random choice.
        :return: a context manager, whose ``attempts`` and ``failures`` count.
        :raises ValueError: an unknown point, a number out of range, or nothing that could fail.
        """
        from realmem.inject import injection

        self._allocator.check_alive()
        return injection(self._allocator, point, nth, probability, times, seed)

    # ---- life ----

    def close(self) -> None:
        """
        Give everything back; the second time does nothing.

        :raises BufferError: views are exported; nothing is changed then.
        """
        if self._closed:
            return
        if not self._inherited():
            try:
                self._allocator.check_alive()
            except ValueError:
                return                  # another thread is closing it
        views = self._allocator.nr_exports + self._vmalloc.exports
        if self._process_table is not None:
            views += self._process_table.exports
        if views and not self._inherited():
            raise BufferError(
                f"{views} views of this machine's memory are alive: release them first"
            )
        self._finish()

    def _finish(self) -> None:
        # A second thread would unmap what others are still inside of.
        if not self._finishing.acquire(blocking=False):
            return
        if not self._inherited():
            self._slab.reports.collect()
        self._closed = True
        self._end_processes()
        # The allocator first: from then on there are no new views, and no other thread is
        # inside it.
        self._allocator.close()
        pool = self._pool
        if self._allocator.nr_exports and not self._inherited():
            # Live views lose their memory, not their addresses: a later access is a
            # SIGSEGV, never somebody else's data.
            self._allocator.when_released(pool.close)
            pool.revoke()
            if self._allocator.nr_exports:
                return
        pool.close()

    def _end_processes(self) -> None:
        if not self._inherited():
            self._allocator.refuse_calls()
            self._keeper.end()

    def _inherited(self) -> bool:
        return os.getpid() != self._pid

    def __enter__(self) -> Machine:
        self._allocator.check_alive()
        return self

    def __exit__(self, *exc: object) -> None:
        if not self._closed:
            self._finish()

    def __repr__(self) -> str:
        if self._closed:
            return "<realmem.Machine, closed>"
        parts = [f"{len(self.nodes)} nodes"]
        if self.emulated:
            parts.append("emulated")
        if self.unverified:
            parts.append("unverified")
        return f"<realmem.Machine {', '.join(parts)}>"


class _Keeper:
    """
    Closes the pool of a machine that nobody closed.

    Processes point at each other and at the machine's structures, so that the collector may
    run this first: they have to end while their frames are still there.
    """

    def __init__(self, pool: Pool, vmalloc: VmallocSpace) -> None:
        self._pool = pool
        self._pid = os.getpid()
        self._vmalloc = vmalloc
        self.processes: ProcessTable | None = None
        self.paging: Paging | None = None

    def end(self) -> None:
        """Unmap everything, then give the page tables back."""
        if self.processes is not None:
            self.processes.close()
        self._vmalloc.close()
        if self.paging is not None:
            self.paging.close()

    def __del__(self) -> None:
        if os.getpid() == self._pid:
            self.end()
        self._pool.close()


def _take_memory(
    places: Sequence[ResolvedNode],
    ranges: Sequence[NodeRange],
    backing: str,
    mlock: bool,
    progress: Callable[[int, int, int], None] | None,
    held: list[Pool],
) -> None:
    from realmem.pool import Pool, PoolNode
    from realmem.progress import populating

    nodes = [
        PoolNode(
            bytes=where.pages << PAGE_SHIFT,
            start_phys=where.start_pfn << PAGE_SHIFT,
            host_node=place.host_node,
            memmap_phys=where.memmap_pfn << PAGE_SHIFT,
            memmap_bytes=where.memmap_pages << PAGE_SHIFT,
        )
        for place, where in zip(places, ranges, strict=True)
    ]
    with populating([node.bytes for node in nodes], progress) as report:
        Pool(nodes, backing=backing, mlock=mlock, progress=report, held=held)
