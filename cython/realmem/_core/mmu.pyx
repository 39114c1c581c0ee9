# cython: language_level=3
"""A machine's part in paging, and the objects behind shared anonymous memory."""
cimport cython
from libc.errno cimport ENOMEM
from libc.stdint cimport int64_t, uint32_t, uint64_t

from realmem._core.kswapd_threads cimport kswapd_forget, kswapd_run, kswapd_stop
from realmem._core.machine cimport MachineCore
from realmem._kernel.address_space cimport mapping_put
from realmem._kernel.arch_x86_64 cimport cycles
from realmem._kernel.fault_cost cimport fault_costs_free
from realmem._kernel.lock_order cimport LOCK_SWAP, check_mutex
from realmem._kernel.lru cimport lru_init
from realmem._kernel.mmap cimport mm_maps
from realmem._kernel.pgtable cimport mmu_exit, mmu_init
from realmem._kernel.rmap cimport rmap_place, rmap_places
from realmem._kernel.shmem cimport shmem_create
from realmem._kernel.uffd cimport uffd_open
from realmem._kernel.vmscan cimport (
    BY_DIRECT, reclaim_begins, reclaim_ends, reclaim_for_fault, reclaim_pages, vmscan_exit,
    vmscan_init,
)
from realmem.compiler cimport load64
from realmem.linux cimport sched_yield
from realmem.types cimport MAX_NR_ZONES, PAGE_SHIFT, WMARK_LOW, pfn_to_page, zone

import os
import time
import weakref

from realmem.errors import OutOfMemory
from realmem.layout import GFP


cdef enum: FREE_TURNS = 4           # tries without reclaim

cdef set descriptors = set()        # userfaultfd's, of this process
cdef bint closed_in_children = False


# A child that os.fork() makes has no use for them: what it inherits is of its parent's memory.
cdef int close_in_children() except -1:
    global closed_in_children
    if not closed_in_children:
        closed_in_children = True
        os.register_at_fork(after_in_child=close_descriptors)
    return 0


def close_descriptors():
    """Close what was opened for this process's parent."""
    while descriptors:
        os.close(descriptors.pop())


@cython.no_gc_clear
cdef class Mmu:
    """
    A machine's part in paging: the zero page, the kernel half of every page directory.

    :param core: the machine.
    :param fds: memfd of each node, -1 for one without memory.
    :param vma_budget: host VMAs that windows may take.
    :param verify: compare what each change of VMAs came to with what was planned.
    :raises OutOfMemory: no frames.
    """

    def __cinit__(self, MachineCore core, fds, int64_t vma_budget, bint verify=False):
        cdef int nid
        core.alive()
        self.core = core
        self.verify = verify
        self.u.m = core.m
        self.u.vma_budget = vma_budget
        for nid in range(core.m.nr_nodes):
            self.u.fds[nid] = fds[nid]
            self.u.fd_phys[nid] = core.m.nodes[nid].start_pfn << PAGE_SHIFT
        self.u.nr_fds = core.m.nr_nodes
        self.shmems = {}
        self.inodes = {}
        for nid in range(core.m.nr_zones):
            self.u.total_pages += core.m.zones[nid].managed_pages
        self.u.commit_limit = self.u.total_pages >> 1
        self.u.stack_guard_gap = 256 << PAGE_SHIFT
        self.u.mmap_min_addr = 65536
        self.u.fault_around = 65536
        self.u.runs = 1
        self.u.uffd = -1
        self.clock_s = time.monotonic()
        self.clock_cycles = cycles()
        self.areas = []
        self.pid = os.getpid()
        self.u.swappiness = 60
        self.u.page_cluster = 3
        check_mutex(core.m, &self.u.swap_lock, LOCK_SWAP, 0)
        lru_init(&self.u)
        if mmu_init(&self.u) != 0:
            raise OutOfMemory("no frames for the kernel's page tables", gfp=GFP.KERNEL)

    def __dealloc__(self):
        fault_costs_free(&self.u)

    def open_userfaultfd(self):
        """
        Have raw faults filled through userfaultfd from now on.

        :return: 0, or why the host refuses: an errno, ENOSYS where its kernel lacks a part.
        """
        cdef int fd
        if self.u.uffd < 0:
            fd = uffd_open()
            if fd < 0:
                return -fd
            if not descriptors:
                close_in_children()
            descriptors.add(fd)
            self.u.uffd = fd
        return 0

    def start_reclaim(self):
        """There is something that can be taken back: have it taken from now on."""
        if not self.reclaiming:
            self.reclaiming = True
            vmscan_init(&self.u)
            with nogil:
                kswapd_run(&self.u)     # without its threads, who allocates does it all

    cdef void stop_reclaim(self) noexcept:
        self.reclaiming = False
        vmscan_exit(&self.u)
        if os.getpid() != self.pid:
            kswapd_forget(&self.u)
            return
        with nogil:
            kswapd_stop(&self.u)
            while load64(<uint64_t*>&self.u.reclaimers) != 0:
                sched_yield()           # they gave up every lock, and will come back to none

    # Others may have made room already; or something else refuses, as overcommit does.
    cdef bint make_room(self, int turn) noexcept:
        cdef bint found = False
        cdef zone* z
        cdef int i
        if not self.reclaiming:
            return False
        for i in range(self.u.m.nr_zones):
            z = &self.u.m.zones[i]
            found |= z.managed_pages != 0 and z.free_pages <= z.watermark[WMARK_LOW]
        if not found:
            return turn < FREE_TURNS
        with nogil:
            reclaim_begins(&self.u)
            found = reclaim_for_fault(&self.u, turn)
            reclaim_ends(&self.u)
        return found

    def try_again(self, int turn):
        """Take pages back for a call that found no memory; whether it is to be tried again."""
        self.core.alive()
        return self.make_room(turn)

    def reclaim(self, int64_t pages, int nid):
        """Take back pages of a node (-1: of all); how many that were."""
        cdef int64_t freed
        self.core.alive()
        reclaim_begins(&self.u)
        with nogil:
            freed = reclaim_pages(&self.u, nid, pages, BY_DIRECT, MAX_NR_ZONES)
            reclaim_ends(&self.u)
        return freed

    def kswapd(self, int nid):
        """(running, pages scanned, pages reclaimed) of a node's."""
        return (bool(self.u.kswapd[nid].running), self.u.kswapd[nid].pages_scanned,
                self.u.kswapd[nid].pages_reclaimed)

    def set_swapping(self, int swappiness, int page_cluster):
        """Publish vm.swappiness and vm.page-cluster."""
        self.u.swappiness = swappiness
        self.u.page_cluster = page_cluster

    @property
    def swap_counts(self):
        """(slots, free ones, frames in the swap cache)."""
        return self.u.total_swap_pages, self.u.nr_swap_pages, self.u.nr_swapcache

    def close(self):
        """Give the frames back; every address space has been ended before."""
        self.stop_reclaim()
        for area in list(self.areas):
            area.close()
        if self.u.uffd in descriptors:
            descriptors.discard(self.u.uffd)
            os.close(self.u.uffd)
        self.u.uffd = -1
        for reference in list(self.shmems.values()):
            object = reference()
            if object is not None:
                (<Shmem>object).drop()
        for inode in list(self.inodes.values()):
            inode.close()
        self.inodes.clear()
        if self.u.ready:
            mmu_exit(&self.u)

    @property
    def zero_pfn(self):
        """The shared zero page."""
        return self.u.zero_pfn

    cdef bint is_ours(self):
        if self.core.m == NULL:
            return False
        try:
            self.core.alive()
        except ValueError:
            return False
        return True

    def rest_files(self):
        """Let go of files that are mapped no more."""
        for inode in tuple(self.inodes.values()):
            inode.rest()

    # Files that somebody else may have written to, before anything is asked of their frames.
    cdef int look_at_files(self) except -1:
        for inode in tuple(self.inodes.values()):
            inode.look()
        return 0

    @property
    def committed(self):
        """Pages promised (Committed_AS)."""
        return self.u.committed

    @property
    def total_pages(self):
        """Pages that the overcommit rules count with."""
        return self.u.total_pages

    @property
    def counts(self):
        """(Shmem, AnonPages, Mapped, Mlocked) in pages."""
        return (self.u.nr_shmem, self.u.nr_anon_mapped, self.u.nr_file_mapped,
                self.u.nr_mlock)

    @property
    def file_events(self):
        """KiB read from files and written to them, by their names in /proc/vmstat."""
        return {"pgpgin": self.u.pgpgin, "pgpgout": self.u.pgpgout}

    def set_overcommit(self, int mode, int64_t limit_pages, int64_t admin_reserve,
                       int64_t user_reserve):
        """Publish vm.overcommit_* (pages): mode 0, 1 or 2, and mode 2's limit and reserves."""
        self.u.overcommit = mode
        self.u.commit_limit = limit_pages
        self.u.admin_reserve = admin_reserve
        self.u.user_reserve = user_reserve

    def set_layout(self, uint64_t mmap_min_addr, int64_t stack_guard_gap):
        """Publish vm.mmap_min_addr and the gap that stacks keep below them, in bytes."""
        self.u.mmap_min_addr = mmap_min_addr
        self.u.stack_guard_gap = stack_guard_gap

    def set_folios(self, uint32_t always, uint32_t madvise):
        """Publish the orders (bits) that anonymous faults try: everywhere, or if advised."""
        self.u.thp_always = always
        self.u.thp_madvise = madvise

    def set_cow_node(self, int where):
        """Publish where copies go, COW_*."""
        self.u.cow_node = where

    def set_runs(self, bint wanted):
        """Publish whether raw faults reserve runs of frames."""
        self.u.runs = wanted

    def set_zero_page(self, bint huge):
        """Publish whether reads of empty memory may bring the huge zero page."""
        self.u.thp_zero_page = huge

    @property
    def folio_counts(self):
        """(allocated, fallen back) by order, since the machine was made."""
        cdef int order
        return ([self.u.mthp_alloc[order] for order in range(16)],
                [self.u.mthp_fallback[order] for order in range(16)])

    @property
    def huge_events(self):
        """Events of huge pages other than faults', by their names in /proc/vmstat."""
        return {"thp_collapse_alloc": self.u.thp_collapse_alloc,
                "thp_collapse_alloc_failed": self.u.thp_collapse_alloc_failed,
                "thp_split_pmd": self.u.thp_split_pmd,
                "thp_zero_page_alloc": self.u.thp_zero_page_alloc,
                "thp_zero_page_alloc_failed": self.u.thp_zero_page_alloc_failed}

    @property
    def hint_events(self):
        """Events of NUMA hints, by their names in /proc/vmstat."""
        return {"numa_pte_updates": self.u.numa_pte_updates,
                "numa_hint_faults": self.u.numa_hint_faults,
                "numa_hint_faults_local": self.u.numa_hint_faults_local}

    def places_of(self, uint64_t pfn):
        """
        List where a frame is mapped.

        :return: list of (pid, address).
        """
        cdef rmap_place places[64]
        cdef int64_t i, n = 64, skip = 0
        cdef list found = []
        cdef int pid
        self.core.alive()
        while n == 64:
            with nogil:
                n = rmap_places(&self.u, pfn_to_page(self.u.m, pfn), places, skip, 64)
            skip += n
            for i in range(n):
                pid = places[i].mm.pid
                if mm_maps(places[i].mm, places[i].mm_id, places[i].address, pfn):
                    found.append((pid, places[i].address))
        return sorted(found)

cdef class Shmem:
    """
    An object behind shared anonymous memory.

    It lives while VMAs map it; until the first one does, this keeps it.

    :param mmu: the machine's.
    :param pages: its size; fixed.
    :param noreserve: whether its pages are charged as they are made.
    :param may_reserve: whether the caller may use what overcommit reserves for root.
    :param total_vm: pages that the caller has mapped.
    :raises OSError: ENOMEM, overcommit refuses or no memory for it.
    """

    def __cinit__(self, Mmu mmu not None, uint64_t pages, bint noreserve=False,
                  bint may_reserve=False, int64_t total_vm=0):
        mmu.core.alive()
        self.mmu = mmu
        self.size = pages
        self.object = shmem_create(&mmu.u, pages, noreserve, may_reserve, total_vm)
        if self.object == NULL:
            raise OSError(ENOMEM, "cannot allocate memory")
        self.owned = True
        self.inode = self.object.id
        mmu.shmems[self.inode] = weakref.ref(self)      # no callback: an interrupt would be lost

    def __dealloc__(self):
        self.drop()

    # VMAs keep it from now on, or nothing does.
    cdef void drop(self) noexcept:
        if self.owned:
            self.owned = False
            if self.mmu is not None:
                self.mmu.shmems.pop(self.inode, None)
                if self.mmu.is_ours():
                    mapping_put(self.object)
