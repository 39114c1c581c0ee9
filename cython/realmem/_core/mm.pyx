# cython: language_level=3
"""Address spaces: a machine's part in paging, one window and its page tables, views of it."""
cimport cython
from cpython.buffer cimport PyBuffer_FillInfo
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from libc.errno cimport EAGAIN, ENOMEM, ESRCH
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free

from realmem._core.faults cimport check_owner, forget, out_of_memory, register
from realmem._core.machine cimport MachineCore
from realmem._kernel.access cimport mm_access, mm_access_all, mm_fill, mm_touch
from realmem._kernel.arch_x86_64 cimport cycles
from realmem._kernel.commit cimport (
    STEP_LOCK, STEP_MOVE, STEP_PROTECT, STEP_UNLOCK, STEP_VMAS, STEP_ZAP, mm_commit, mm_step,
    new_vma,
)
from realmem._kernel.collapse cimport mm_collapse
from realmem._kernel.fault_cost cimport nr_cost_slots
from realmem._kernel.madvise cimport (
    ADVISE_COLD, ADVISE_DONTNEED, ADVISE_FREE, ADVISE_GUARD_INSTALL, ADVISE_GUARD_REMOVE,
    ADVISE_OLD, ADVISE_OLD_ANON, ADVISE_OLD_FILE, ADVISE_SOFT_CLEAN, mm_advise,
)
from realmem._kernel.mm_finding cimport MM_OBJECTS, MM_VALID, mm_finding
from realmem._kernel.mm_stat cimport mm_mincore, mm_pagemap, mm_range_stat, range_stat
from realmem._kernel.mm_types cimport (
    FAULT_ACCERR, FAULT_HOST, FAULT_MAPERR, FAULT_OK, FAULT_OOM, FAULT_SIGBUS, TASK_SIZE,
    fault_cost, mm_core, mm_struct, shmem, window, window_of,
)
from realmem._kernel.mmap cimport (
    mm_clear_soft_dirty, mm_exit, mm_flush, mm_fork, mm_growth_seen,
    mm_maps, mm_object_get, mm_run_on, mm_stacks, mm_vma_info, mm_walk,
)
from realmem._kernel.percpu cimport get_cpu_area
from realmem._kernel.pin cimport mm_pin, mm_unpin
from realmem._kernel.pgtable cimport mmu_exit, mmu_init
from realmem._kernel.rmap cimport rmap_place, rmap_places
from realmem._kernel.shmem cimport shmem_create, shmem_punch, shmem_put
from realmem._kernel.validate_mm cimport validate_mms
from realmem._kernel.window cimport mm_cover, mm_create, window_reap, windows
from realmem.types cimport PAGE_SHIFT, pfn_to_page

import time
import weakref
from collections import namedtuple

from realmem._core.own_caches import NAMES
from realmem.errors import (
    AtomicContextError, BusError, HostError, InvariantError, OutOfMemory, SegmentationFault,
)
from realmem.layout import GFP

LEVELS = ("pgd", "pud", "pmd", "pte")

# By the numbers of _kernel/mm_finding.pxd.
MESSAGES = (
    "",
    "address {where:#x}: entry {found:#x} in no VMA",
    "address {where:#x}: entry {found:#x} allows more than its VMA",
    "address {where:#x}: the host's mapping allows more than entry {found:#x}",
    "address {where:#x}: entry {found:#x} maps no anonymous page",
    "address {where:#x}: writable entry to a frame that is mapped {found} times",
    "rss says {found} pages, the page tables have {expected}",
    "pfn {where}: page table counts {found} used entries, it has {expected}",
    "{found} page tables counted, the walk finds {expected}",
    "{found} host VMA edges counted, the entries make {expected}",
    "pfn {where}: mapcount {found}, page tables map it {expected} times",
    "pfn {where}: refcount {found} below its {expected} mappings",
    "{found} page-table frames, the walks find {expected}",
    "address {where:#x}: VMA {found} begins below its predecessor's end {expected:#x}",
    "vmalloc: ranges overlap near {where:#x}, or are not all",
    "vmalloc: {found} pages counted from {where:#x} on, there are {expected}",
    "vmalloc: entry {found:#x} of {where:#x} maps a frame that is not the area's",
    "vmalloc: {found} entries, the areas have {expected}",
    "{found} frames say that they are vmalloc's, the areas have {expected}",
    "{where}: {found} objects are in use, there is use for {expected}",
    "address {where:#x}: the VMA differs from what is published of it",
    "total_vm or its kin: {found} pages counted, the VMAs have {expected}",
    "address {where:#x}: its frame is page {found} of its owner, the VMA expects {expected}",
    "address {where:#x}: huge entry {found:#x} and the table that it keeps differ",
    "frames count {found} huge entries, the walks find {expected}",
)
STEPS = {"vmas": STEP_VMAS, "zap": STEP_ZAP, "protect": STEP_PROTECT, "move": STEP_MOVE,
         "lock": STEP_LOCK}
ADVICE = {"dontneed": ADVISE_DONTNEED, "free": ADVISE_FREE, "cold": ADVISE_COLD,
          "guard_install": ADVISE_GUARD_INSTALL, "guard_remove": ADVISE_GUARD_REMOVE}
CLEAR_REFS = {"referenced": ADVISE_OLD, "anon": ADVISE_OLD_ANON, "file": ADVISE_OLD_FILE,
              "soft_dirty": ADVISE_SOFT_CLEAN}
LIMITS = {"AS": 0, "DATA": 1, "STACK": 2, "MEMLOCK": 3}

Smaps = namedtuple("Smaps", (
    "rss", "pss", "pss_dirty", "shared_clean", "shared_dirty", "private_clean",
    "private_dirty", "referenced", "anonymous", "lazyfree", "anon_huge", "shmem_huge",
    "file_huge", "swap", "swap_pss", "locked"))


def reap():
    """Give back the windows of exited processes that no view covers any more."""
    window_reap()


def host_vmas():
    """Count the host VMAs that all windows take, by our own account."""
    return windows.host_vmas


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
        for nid in range(core.m.nr_zones):
            self.u.total_pages += core.m.zones[nid].managed_pages
        self.u.commit_limit = self.u.total_pages >> 1
        self.u.stack_guard_gap = 256 << PAGE_SHIFT
        self.u.mmap_min_addr = 65536
        self.u.fault_around = 65536
        self.u.costs = <fault_cost*>calloc(nr_cost_slots(core.m.nr_nodes), sizeof(fault_cost))
        if self.u.costs == NULL:
            raise HostError(ENOMEM, "the host has no memory for what faults cost")
        self.clock_s = time.monotonic()
        self.clock_cycles = cycles()
        if mmu_init(&self.u) != 0:
            raise OutOfMemory("no frames for the kernel's page tables", gfp=GFP.KERNEL)

    def __dealloc__(self):
        free(self.u.costs)

    def close(self):
        """Give the frames back; every address space has been ended before."""
        for reference in list(self.shmems.values()):
            object = reference()
            if object is not None:
                (<Shmem>object).drop()
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
                "thp_split_pmd": self.u.thp_split_pmd}

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

    def check(self, spaces):
        """
        Recount the page tables of every address space of this machine.

        :param spaces: every AddressSpace that has not exited.
        :raises InvariantError: names the first thing that is wrong.
        """
        cdef list ordered = sorted(spaces, key=space_id)
        cdef int64_t i, n = len(ordered)
        cdef mm_finding found
        cdef mm_struct** mms
        cdef uint32_t* counts
        self.core.alive()
        mms = <mm_struct**>calloc(n + 1, sizeof(mm_struct*))
        counts = <uint32_t*>calloc(self.u.m.max_pfn + 1, sizeof(uint32_t))
        try:
            if mms == NULL or counts == NULL:
                raise MemoryError
            for i in range(n):
                mms[i] = (<AddressSpace>ordered[i]).mm
            with nogil:
                validate_mms(&self.u, mms, n, counts, &found)
        finally:
            free(mms)
            free(counts)
        if found.what != MM_VALID:
            where = NAMES[found.where] if found.what == MM_OBJECTS else found.where
            words = MESSAGES[found.what].format(
                where=where, expected=found.expected, found=found.found)
            raise InvariantError(f"pid {found.pid}: {words}" if found.pid else words)


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

    cdef shmem* object
    cdef bint owned
    cdef readonly Mmu mmu
    cdef readonly uint64_t size     # pages
    cdef readonly uint64_t inode
    cdef object __weakref__

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
                    shmem_put(self.object)


def space_id(AddressSpace space):
    """Give the lock order of address spaces."""
    return space.id


@cython.no_gc_clear
cdef class AddressSpace:
    """
    One process's window, page tables and published VMAs.

    Methods raise ProcessLookupError once it was ended, ValueError on a closed or inherited
    machine, and what the calling thread has pending, before anything changes.

    :param mmu: the machine's.
    :param pid: for reports.
    :param nid: node that software accesses allocate from; -1 is the calling CPU's.
    :param length: bytes of host address space, a power of two from 1 GiB; halved while the host
        refuses.
    :raises OutOfMemory: no memory for it and its page directory.
    :raises HostError: not even 1 GiB of host address space.
    """

    cdef mm_struct* mm
    cdef readonly uint64_t id
    cdef readonly Mmu mmu
    cdef readonly int pid
    cdef readonly uint64_t user_start   # of the first window
    cdef readonly uint64_t length
    cdef object vmas                    # as Python has them: a VmaTree
    cdef uint64_t seen                  # generation that sync() told of
    cdef bint ended

    def __cinit__(self, Mmu mmu not None, int pid, int nid, uint64_t length, tree=None):
        cdef int error = 0
        mmu.core.alive()
        self.vmas = tree
        self.mmu = mmu
        self.pid = pid
        self.ended = True
        self.mm = mm_create(&mmu.u, pid, nid, &length, &error)
        if self.mm == NULL:
            if error == ENOMEM:
                raise OutOfMemory("no memory for a process and its page directory",
                                  gfp=GFP.KERNEL)
            raise HostError(ENOMEM, "the host has no address space left; see ulimit -v")
        self.id = self.mm.id
        register(self.id, mmu.core.owner)
        self.ended = False
        if error != 0:
            self.exit()
            raise HostError(ENOMEM, "no 1 GiB of host address space for a window; see ulimit -v")
        self.user_start = self.mm.windows.user_start
        self.length = length

    def __dealloc__(self):
        forget(self.id)
        # No bytecode runs while mm.lock is held, so that this cannot wait for itself.
        if not self.ended and self.mmu is not None and self.mmu.is_ours():
            mm_exit(self.mm, self.id)

    cdef int alive(self) except -1:
        self.mmu.core.enter()
        if self.ended:
            raise ProcessLookupError(ESRCH, f"process {self.pid} has exited")
        if self.mmu.core.atomic_contexts and get_cpu_area(self.mmu.core.m).atomic_depth > 0:
            raise AtomicContextError("system calls may sleep: not inside atomic_context()")
        return 0

    def check_alive(self):
        """
        Do nothing on an address space that can be used.

        :raises ProcessLookupError: it was ended.
        :raises ValueError: its machine is closed or inherited.
        """
        self.alive()

    # ---- changes ----

    def commit(self, list steps, tree, deltas, uint64_t generation, int64_t charge):
        """
        Run a change that was planned aside, and publish the VMAs that it comes to.

        Nothing interrupts it: all of it is done, or nothing.

        :param steps: in order: ``("vmas", lo, hi, [(vma, source), ...])``: VMAs that begin in
            [lo, hi) become these; ``source`` is the start of the VMA whose anon_vma a new one
            takes over, or -1.  ``("zap", start, end)``, ``("protect", start, end)``,
            ``("move", old, new, length)``, ``("lock", start, end, on)``.
        :param tree: the VMAs after it, for ``self.tree``.
        :param deltas: what the counters are to change by, as planned: they are counted here
            anew, and compared with that where the machine was made to (``debug=1``).
        :param generation: ``self.generation`` as it was planned.
        :param charge: pages that overcommit has to allow.
        :return: False, and nothing changed: a fault has changed a VMA since, plan again.
        :raises OSError: ENOMEM, and nothing changed.
        :raises InvariantError: made, but the counters are not what was planned.
        """
        cdef int64_t n = len(steps), nr_vmas = 0, i, j
        cdef int rc
        cdef tuple before = self.counters if self.mmu.verify else None
        cdef mm_step* log
        cdef new_vma* vmas = NULL
        cdef list objects = []
        for step in steps:
            if step[0] == "vmas":
                nr_vmas += len(step[3])
        log = <mm_step*>calloc(n + 1, sizeof(mm_step))
        vmas = <new_vma*>calloc(nr_vmas + 1, sizeof(new_vma))
        try:
            if log == NULL or vmas == NULL:
                raise MemoryError
            j = 0
            for i in range(n):
                step = steps[i]
                log[i].what = STEPS[step[0]]
                log[i].start = step[1]
                log[i].end = step[2]
                if log[i].what == STEP_VMAS:
                    log[i].first = j
                    log[i].count = len(step[3])
                    for vma, source in step[3]:
                        put_vma(vmas + j, vma, source, objects)
                        j += 1
                elif log[i].what == STEP_MOVE:
                    log[i].to = step[2]
                    log[i].end = log[i].start + <uint64_t>step[3]
                elif log[i].what == STEP_LOCK and not step[3]:
                    log[i].what = STEP_UNLOCK
            with nogil:
                rc = mm_commit(self.mm, self.id, generation, log, n, vmas, charge)
            if rc == 0:
                # C code only: no signal handler and no other thread gets in between.
                self.vmas = tree
                for object in objects:
                    (<Shmem>object).drop()
        finally:
            free(log)
            free(vmas)
        if rc == -EAGAIN:
            return False
        self.check_rc(rc)
        if before is not None:
            self.verify(before, deltas, generation)
        return True

    # No stack grew since the plan was made, or this would not have been committed; where none
    # has grown since then either, nobody but the commit has counted.
    cdef int verify(self, tuple before, deltas, uint64_t generation) except -1:
        cdef tuple after = self.counters
        planned = tuple([count + delta for count, delta in zip(before, deltas)])
        if after != planned and self.mm.generation == generation:
            raise InvariantError(f"pid {self.pid}: a change was to make total_vm and its kin "
                                 f"{planned}, they are {after}")
        return 0

    @property
    def generation(self):
        """Raised when a fault changes a VMA: plans made before are stale."""
        return self.mm.generation

    @property
    def tree(self):
        """The VMAs as published; set it to one that shows what sync() told of."""
        return self.vmas

    @tree.setter
    def tree(self, tree):
        self.vmas = tree
        mm_growth_seen(self.mm, self.id, self.seen)

    def sync(self):
        """
        Tell how far faults grew stacks, until a tree that shows it is set.

        :return: list of (end, start) of all VMAs that may grow; empty when none did.
        """
        cdef uint64_t ends[64]
        cdef uint64_t starts[64]
        cdef uint64_t addr = 0
        cdef int64_t i, n = 64
        cdef list grown = []
        if not self.mm.grown or self.ended:
            return grown
        self.seen = self.mm.generation
        while n == 64:
            n = mm_stacks(self.mm, self.id, &addr, ends, starts, 64)
            for i in range(n):
                grown.append((ends[i], starts[i]))
        return grown

    def anon_vma(self, uint64_t start):
        """
        Tell who owns the anonymous pages of the VMA that begins at start.

        :return: (id, forked): 0 before the first one; whether it came with a fork.
        """
        cdef uint64_t id = 0
        cdef bint forked = False
        mm_vma_info(self.mm, self.id, start, &id, &forked)
        return id, forked

    def cover(self, uint64_t start, uint64_t end):
        """
        Make windows for what of [start, end) has none.

        :raises OSError: ENOMEM, the host refuses the address space.
        """
        cdef int rc
        self.alive()
        rc = mm_cover(self.mm, self.id, start, end)
        self.check_rc(rc)

    @property
    def windows(self):
        """List of (first address, bytes), the first window first."""
        cdef int i
        return [(self.mm.windows[i].user_start, self.mm.windows[i].length)
                for i in range(self.mm.nr_windows)]

    def set_limit(self, str which, uint64_t value):
        """Set a resource limit in bytes: AS, DATA, STACK or MEMLOCK."""
        self.alive()
        self.mm.core.rlimits[<int>LIMITS[which]] = value

    @property
    def limits(self):
        """Resource limits in bytes, by name."""
        self.alive()
        return {name: self.mm.core.rlimits[<int>i] for name, i in LIMITS.items()}

    def run_on(self, int nid):
        """Say on which node its software accesses and calls run; -1: the calling CPU's."""
        cdef int rc
        self.alive()
        with nogil:
            rc = mm_run_on(self.mm, self.id, nid)
        self.check_rc(rc)

    def set_capabilities(self, bint ipc_lock, bint sys_admin):
        """Say what faults and charges may do: CAP_IPC_LOCK, CAP_SYS_ADMIN."""
        self.alive()
        self.mm.core.may_lock = ipc_lock
        self.mm.core.may_reserve = sys_admin

    def set_thp_disabled(self, int how):
        """Let faults bring single pages only: 0 no, 1 yes, 3 but where MADV_HUGEPAGE asks."""
        self.alive()
        self.mm.core.thp_disabled = how

    def shmem_create(self, uint64_t pages, bint noreserve=False):
        """
        Make an object for shared anonymous memory.

        :raises OSError: ENOMEM.
        """
        self.alive()
        return Shmem(self.mmu, pages, noreserve, self.mm.core.may_reserve != 0,
                     self.mm.core.total_vm)

    # ---- pages ----

    def populate(self, uint64_t start, uint64_t end, bint write):
        """
        Fault a range in, as a read or a write of each page.

        :return: (0 or FAULT_*, the address where it stopped).
        """
        cdef uint64_t done = 0
        cdef int rc
        self.alive()
        with nogil:
            rc = mm_touch(self.mm, self.id, start, end - start, write, &done)
        if rc < 0:
            self.check_rc(rc)
        return rc, start + done

    def zap(self, uint64_t start, uint64_t end):
        """Drop what is mapped in a range (MADV_DONTNEED)."""
        self.madvise(start, end, "dontneed")

    def madvise(self, uint64_t start, uint64_t end, str what):
        """
        Do to the pages of one piece of a VMA what an advice says.

        :param what: "dontneed", "free", "cold", "guard_install", "guard_remove" or "remove".
        :raises OSError: ENOMEM, no page tables for guard markers.
        """
        cdef int rc
        cdef int advice
        cdef shmem* object
        cdef uint64_t first = 0, last = 0
        self.alive()
        if what == "remove":
            object = mm_object_get(self.mm, self.id, start, end, &first, &last)
            if object != NULL:
                with nogil:
                    shmem_punch(object, first, last)
                    shmem_put(object)
            return
        advice = ADVICE[what]
        with nogil:
            rc = mm_advise(self.mm, self.id, start, end, advice)
        self.check_rc(rc)

    def collapse(self, uint64_t start, uint64_t end):
        """
        Make huge pages of what lies in one piece of a VMA (MADV_COLLAPSE).

        :raises OSError: EINVAL, nothing is there, or a guard region; EAGAIN, somebody refers to
            one of its pages; ENOMEM; of the last 2 MiB that stayed as they are.
        """
        cdef int rc
        self.alive()
        with nogil:
            rc = mm_collapse(self.mm, self.id, start, end)
        self.check_rc(rc)

    def mincore(self, uint64_t start, uint64_t end):
        """Give a byte for each page of mapped VMAs: 1 where it is in memory."""
        cdef uint64_t n = (end - start) >> PAGE_SHIFT
        cdef int rc
        cdef unsigned char* at
        self.alive()
        result = PyBytes_FromStringAndSize(NULL, n)
        at = <unsigned char*>PyBytes_AS_STRING(result)
        with nogil:
            rc = mm_mincore(self.mm, self.id, start, end, at)
        self.check_rc(rc)
        return result

    def pagemap(self, uint64_t start, int64_t n):
        """List the /proc/PID/pagemap words of n pages."""
        cdef uint64_t* words
        cdef int64_t i
        cdef int rc
        self.alive()
        words = <uint64_t*>calloc(n + 1, sizeof(uint64_t))
        try:
            if words == NULL:
                raise MemoryError
            with nogil:
                rc = mm_pagemap(self.mm, self.id, start, n, True, words)
            self.check_rc(rc)
            return [words[i] for i in range(n)]
        finally:
            free(words)

    cdef int count_range(self, uint64_t start, uint64_t end, range_stat* s) except -1:
        cdef int rc
        self.alive()
        with nogil:
            rc = mm_range_stat(self.mm, self.id, start, min(end, <uint64_t>TASK_SIZE), s)
        return self.check_rc(rc)

    def smaps(self, uint64_t start, uint64_t end):
        """Count the pages of a range for smaps; pss, pss_dirty and locked are in bytes."""
        cdef range_stat s
        self.count_range(start, end, &s)
        return Smaps(s.rss, s.pss, s.pss_dirty, s.shared_clean, s.shared_dirty,
                     s.private_clean, s.private_dirty, s.referenced, s.anonymous, s.lazyfree,
                     s.huge, 0, 0, 0, 0, s.pss_locked)

    def numa(self, uint64_t start, uint64_t end):
        """Count the pages of a range: (anon, dirty, mapmax, active, pages by node, huge)."""
        cdef range_stat s
        cdef int nid
        self.count_range(start, end, &s)
        nodes = [s.nodes[nid] for nid in range(self.mmu.u.m.nr_nodes)]
        return s.anonymous, s.dirty, s.mapmax, s.active, nodes, s.huge

    def clear_refs(self, str what, tree=None):
        """
        Clear accessed bits ("referenced", "anon", "file") or soft-dirty bits ("soft_dirty").

        :param tree: for "soft_dirty": the VMAs without theirs.
        """
        cdef int advice = CLEAR_REFS[what]
        cdef int rc
        self.alive()
        with nogil:
            rc = mm_advise(self.mm, self.id, 0, <uint64_t>TASK_SIZE, advice)
        if rc == 0 and advice == ADVISE_SOFT_CLEAN:
            mm_clear_soft_dirty(self.mm, self.id)
            if tree is not None:
                self.vmas = tree
        self.check_rc(rc)

    cdef int check_rc(self, int rc) except -1:
        if rc == -ESRCH:
            raise ProcessLookupError(ESRCH, f"process {self.pid} has exited")
        if rc == -ENOMEM:
            raise OSError(ENOMEM, "cannot allocate memory")
        if rc < 0:
            raise OSError(-rc, "no huge page")
        return 0

    def fork_into(self, AddressSpace child not None, tree):
        """
        Share every page with a new, empty address space, copy-on-write.

        :param tree: the child's VMAs.
        :raises OSError: ENOMEM, no frames for its page tables; the child is to be ended.
        """
        cdef int rc, i
        self.alive()
        check_owner()
        for i in range(1, self.mm.nr_windows):
            child.cover(self.mm.windows[i].user_start,
                        self.mm.windows[i].user_start + self.mm.windows[i].length)
        with nogil:
            rc = mm_fork(self.mm, self.id, child.mm)
        self.check_rc(rc)
        child.vmas = tree

    def exit(self, dict live=None):
        """
        Give everything back; views that are left answer SEGV_MAPERR from now on.

        :param live: processes by pid; this one goes from it in the same step.
        """
        if not self.ended:
            self.ended = True
            with nogil:
                mm_exit(self.mm, self.id)
            if live is not None:
                live.pop(self.pid, None)

    # ---- looking in ----

    cdef window* window_at(self, uint64_t addr, uint64_t length) except NULL:
        cdef window* w = window_of(self.mm, addr)
        if w == NULL or length > w.length or addr - w.user_start > w.length - length:
            raise ValueError(f"[{addr:#x}, {addr + length:#x}) is not all in one window of "
                             f"process {self.pid}")
        return w

    def host_address(self, uint64_t addr):
        """
        Give the host address of one of the process's own.

        :raises ValueError: it is in no window.
        """
        cdef window* w
        self.alive()
        check_owner()
        w = self.window_at(addr, 1)
        return w.host_base + (addr - w.user_start)

    def view(self, uint64_t addr, uint64_t length):
        """
        Give a memoryview of a live window.

        :raises ValueError: the range is not all in one window.
        """
        self.alive()
        check_owner()
        self.window_at(addr, length)
        return memoryview(WindowBuffer(self, addr, length))

    @property
    def exports(self):
        """Live buffers over the window."""
        return self.mm.exports if self.mm.id == self.id else 0

    def access(self, uint64_t addr, data, uint64_t n):
        """
        Read ``n`` bytes (``data`` is None) or write ``data`` by the software MMU.

        :return: the bytes read.
        :raises SegmentationFault: at the first address it may not touch; ``done`` bytes before.
        :raises OutOfMemory: a fault found no frame.
        """
        cdef uint64_t done = 0
        cdef int rc
        cdef const unsigned char[::1] source
        cdef char* buffer
        cdef bint write = data is not None
        self.alive()
        if n == 0:
            return b""
        if write:
            # A window's own view would fault under the lock that its fault waits for.
            if type(data) is not bytes:
                data = bytes(data)
                self.alive()
            source = data
            buffer = <char*>&source[0]
            result = None
        else:
            result = PyBytes_FromStringAndSize(NULL, n)
            buffer = PyBytes_AS_STRING(result)
        with nogil:
            rc = mm_access(self.mm, self.id, addr, buffer, n, write, &done)
        self.raise_fault(rc, addr + done, write, done)
        return result

    def touch(self, uint64_t addr, uint64_t n, bint write):
        """
        Access one byte of each page of a range by the software MMU, changing none.

        :raises SegmentationFault: at the first address it may not touch.
        """
        cdef uint64_t done = 0
        cdef int rc
        self.alive()
        with nogil:
            rc = mm_touch(self.mm, self.id, addr, n, write, &done)
        self.raise_fault(rc, addr + done, write, done)

    def access_all(self, const uint64_t[::1] addresses not None, const uint8_t[::1] writes):
        """
        Access one byte at each address by the software MMU, changing none.

        :param addresses: shape (n,).
        :param writes: shape (n,): 0 is a read; or None: all are reads.
        :raises SegmentationFault: at the first that may not be; ``done`` came before it.
        """
        cdef uint64_t n = addresses.shape[0]
        cdef uint64_t done = 0
        cdef const uint8_t* kinds = NULL
        cdef int rc
        self.alive()
        if n == 0:
            return
        if writes is not None:
            if <uint64_t>writes.shape[0] != n:
                raise ValueError(f"{n} addresses, {writes.shape[0]} kinds of access")
            kinds = &writes[0]
        with nogil:
            rc = mm_access_all(self.mm, self.id, &addresses[0], kinds, n, &done)
        if rc != FAULT_OK:
            self.raise_fault(rc, addresses[done] if done < n else 0,
                             kinds != NULL and done < n and kinds[done] != 0, done)

    def fill(self, uint64_t addr, uint64_t n, uint8_t byte):
        """
        Set every byte of a range by the software MMU.

        :raises SegmentationFault: at the first address it may not write.
        """
        cdef uint64_t done = 0
        cdef int rc
        self.alive()
        with nogil:
            rc = mm_fill(self.mm, self.id, addr, n, byte, &done)
        self.raise_fault(rc, addr + done, True, done)

    cdef int raise_fault(self, int rc, uint64_t addr, bint write, uint64_t done) except -1:
        access = "write" if write else "read"
        if rc == FAULT_MAPERR or rc == FAULT_ACCERR:
            raise SegmentationFault(addr, access, rc, self.pid, done)
        if rc == FAULT_OOM:
            raise out_of_memory(
                self.id, f"pid {self.pid}: {access} fault at {addr:#x} found no frame")
        if rc == FAULT_SIGBUS:
            raise BusError(addr, self.pid, done)
        if rc == FAULT_HOST:
            raise HostError(ENOMEM, f"pid {self.pid}: the host refuses to map {addr:#x}")
        return self.check_rc(rc)

    def flush(self, uint64_t start, uint64_t end):
        """Take the host's mappings of a range away; they come back by faults."""
        cdef int rc
        self.alive()
        with nogil:
            rc = mm_flush(self.mm, self.id, start, end)
        self.check_rc(rc)

    def walk(self, uint64_t addr):
        """
        Walk the page tables.

        :return: list of (level, physical address of the entry, raw entry).
        """
        cdef uint64_t where[4]
        cdef uint64_t entry[4]
        cdef int i, steps
        self.alive()
        with nogil:
            steps = mm_walk(self.mm, self.id, addr, where, entry)
        self.check_rc(steps)
        return [(LEVELS[i], where[i], entry[i]) for i in range(steps)]

    @property
    def counters(self):
        """Pages of VMAs: (total_vm, data_vm, exec_vm, stack_vm, locked_vm)."""
        cdef mm_core* core
        self.alive()
        core = self.mm.core
        return core.total_vm, core.data_vm, core.exec_vm, core.stack_vm, core.locked_vm

    @property
    def rss(self):
        """Resident pages: (file, anon, swap, shmem)."""
        self.alive()
        return 0, self.mm.core.anon_rss, 0, self.mm.core.shmem_rss

    @property
    def hiwater(self):
        """The most pages it had: (resident, mapped)."""
        cdef mm_core* core
        self.alive()
        core = self.mm.core
        return max(core.hiwater_rss, core.anon_rss + core.shmem_rss), core.hiwater_vm

    def reset_hiwater(self):
        """Begin VmHWM anew (clear_refs 5)."""
        self.alive()
        self.mm.core.hiwater_rss = 0

    @property
    def nr_ptes(self):
        """Page-table pages, the page directory included."""
        self.alive()
        return self.mm.core.nr_ptes + 1

    @property
    def faults(self):
        """(minor, major) faults."""
        self.alive()
        return self.mm.core.owner.min_flt, self.mm.core.owner.maj_flt

    @property
    def host_vmas(self):
        """Host VMAs that its windows take."""
        self.alive()
        return self.mm.host_edges + self.mm.nr_windows


# Describe one new VMA; what its object is owned by goes to the list.
cdef int put_vma(new_vma* to, vma, source, list objects) except -1:
    to.start = vma.start
    to.end = vma.end
    to.flags = vma.vm_flags_word
    to.pgoff = vma.pgoff
    to.policy = 0
    to.has_source = source is not None and source != -1
    to.source = source if to.has_source else 0
    to.object = NULL
    behind = vma.object
    if isinstance(behind, Shmem):
        to.object = (<Shmem>behind).object
        if (<Shmem>behind).owned:
            objects.append(behind)
    return 0


@cython.no_gc_clear              # what its release needs must still be there
cdef class Pin:
    """
    A context manager that holds the frames and the host's mapping of a range.

    :param space: whose.
    :param addr: first byte.
    :param length: bytes.
    :param write: whether somebody is going to write there.
    """

    cdef AddressSpace space
    cdef uint64_t addr
    cdef uint64_t length
    cdef uint64_t start             # whole pages
    cdef uint64_t end
    cdef bint write
    cdef uint64_t* pfns             # NULL while nothing is pinned
    cdef object view

    def __cinit__(self, AddressSpace space not None, uint64_t addr, uint64_t length, bint write):
        self.space = space
        self.addr = addr
        self.length = length
        self.write = write

    def __enter__(self):
        cdef uint64_t where = 0
        cdef uint64_t* pfns
        cdef int rc
        cdef AddressSpace space = self.space
        space.alive()
        check_owner()
        if self.pfns != NULL:
            raise ValueError("this pin is held already")
        if self.addr + self.length < self.addr or self.addr + self.length > TASK_SIZE:
            space.raise_fault(FAULT_MAPERR, max(self.addr, <uint64_t>TASK_SIZE), self.write, 0)
        if window_of(space.mm, self.addr) == NULL:
            space.raise_fault(FAULT_MAPERR, self.addr, self.write, 0)
        view = space.view(self.addr, self.length)
        self.start = self.addr & ~<uint64_t>4095
        self.end = (self.addr + self.length + 4095) & ~<uint64_t>4095
        pfns = <uint64_t*>calloc(((self.end - self.start) >> PAGE_SHIFT) + 1, sizeof(uint64_t))
        if pfns == NULL:
            raise MemoryError
        with nogil:
            rc = mm_pin(space.mm, space.id, self.start, self.end, self.write, pfns, &where)
        if rc != FAULT_OK:
            free(pfns)
            where = max(where, self.addr)
            space.raise_fault(rc, where, self.write, where - self.addr)
        self.pfns = pfns
        self.view = view if self.write else view.toreadonly()
        return self.view

    def __exit__(self, *what):
        self.release()
        return False

    def __dealloc__(self):
        self.release()

    cdef void release(self) noexcept:
        cdef uint64_t* pfns = self.pfns
        self.view = None
        if pfns == NULL:
            return
        self.pfns = NULL
        if self.space is not None and self.space.mmu.is_ours():
            with nogil:
                mm_unpin(self.space.mm, self.space.id, self.space.mmu.u.m, self.start, self.end,
                         pfns)
        free(pfns)


@cython.no_gc_clear              # what its release needs must still be there
cdef class WindowBuffer:
    """
    Buffer of a range of a live window.

    :param space: whose window; kept alive, and its window kept in place while views live.
    """

    cdef AddressSpace space
    cdef char* start
    cdef Py_ssize_t length

    def __cinit__(self, AddressSpace space, uint64_t addr, uint64_t length):
        cdef window* w = space.window_at(addr, length)
        self.space = space
        self.start = <char*>(w.host_base + (addr - w.user_start))
        self.length = length

    def __getbuffer__(self, Py_buffer* buffer, int flags):
        if self.space.mm.id != self.space.id:
            raise ProcessLookupError(ESRCH, "the window is gone")
        PyBuffer_FillInfo(buffer, self, self.start, self.length, False, flags)
        self.space.mm.exports += 1

    def __releasebuffer__(self, Py_buffer* buffer):
        self.space.mm.exports -= 1
