# cython: language_level=3
"""Address spaces: changes of VMAs, page tables, what is asked of pages."""
cimport cython
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from libc.errno cimport EAGAIN, ENOMEM, ESRCH
from libc.stdint cimport int64_t, uint64_t
from libc.stdlib cimport calloc, free

from realmem._core.faults cimport check_owner
from realmem._core.files cimport Inode
from realmem._core.mmu cimport Mmu, Shmem
from realmem._core.soft_mmu cimport SoftMmu
from realmem._kernel.access cimport mm_touch
from realmem._kernel.address_space cimport TAKE_OBJECT, mapping_drop, mapping_put
from realmem._kernel.commit cimport (
    STEP_ANON, STEP_LOCK, STEP_MOVE, STEP_PROTECT, STEP_UNLOCK, STEP_VMAS, STEP_ZAP, mm_commit,
    mm_step, new_vma,
)
from realmem._kernel.collapse cimport mm_collapse
from realmem._kernel.madvise cimport (
    ADVISE_COLD, ADVISE_DONTNEED, ADVISE_FREE, ADVISE_GUARD_INSTALL, ADVISE_GUARD_REMOVE,
    ADVISE_NUMA_HINT, ADVISE_OLD, ADVISE_OLD_ANON, ADVISE_OLD_FILE, ADVISE_SOFT_CLEAN, mm_advise,
)
from realmem._kernel.mm_stat cimport mm_mincore, mm_pagemap, mm_range_stat, range_stat
from realmem._kernel.mm_types cimport TASK_SIZE, address_space, mm_core
from realmem._kernel.swap_in cimport swap_will_need
from realmem._kernel.vmscan cimport reclaim_range
from realmem._kernel.mmap cimport (
    mm_clear_soft_dirty, mm_flush, mm_fork, mm_growth_seen, mm_object_get, mm_run_on, mm_stacks,
    mm_vma_info, mm_walk,
)
from realmem.types cimport PAGE_SHIFT

from collections import namedtuple

from realmem.errors import InvariantError

LEVELS = ("pgd", "pud", "pmd", "pte")

STEPS = {"vmas": STEP_VMAS, "zap": STEP_ZAP, "protect": STEP_PROTECT, "move": STEP_MOVE,
         "lock": STEP_LOCK, "anon": STEP_ANON}
ADVICE = {"dontneed": ADVISE_DONTNEED, "free": ADVISE_FREE, "cold": ADVISE_COLD,
          "guard_install": ADVISE_GUARD_INSTALL, "guard_remove": ADVISE_GUARD_REMOVE,
          "numa_hint": ADVISE_NUMA_HINT}
CLEAR_REFS = {"referenced": ADVISE_OLD, "anon": ADVISE_OLD_ANON, "file": ADVISE_OLD_FILE,
              "soft_dirty": ADVISE_SOFT_CLEAN}
LIMITS = {"AS": 0, "DATA": 1, "STACK": 2, "MEMLOCK": 3}

Smaps = namedtuple("Smaps", (
    "rss", "pss", "pss_dirty", "shared_clean", "shared_dirty", "private_clean",
    "private_dirty", "referenced", "anonymous", "lazyfree", "anon_huge", "shmem_huge",
    "file_huge", "swap", "swap_pss", "locked", "pss_anon", "pss_file", "pss_shmem"))


@cython.no_gc_clear
cdef class AddressSpace(SoftMmu):
    """
    One process's window, page tables and published VMAs.

    Methods raise ProcessLookupError once it was ended, ValueError on a closed or inherited
    machine, and what the calling thread has pending, before anything changes.  It is made from
    what a Space is made from, and

    :param tree: its VMAs.
    """

    cdef object vmas                    # as Python has them: a VmaTree
    cdef uint64_t seen                  # generation that sync() told of

    def __cinit__(self, Mmu mmu not None, int pid, int nid, uint64_t length, tree=None):
        self.vmas = tree

    # ---- changes ----

    def commit(self, list steps, tree, deltas, uint64_t generation, int64_t charge):
        """
        Run a change that was planned aside, and publish the VMAs that it comes to.

        Nothing interrupts it: all of it is done, or nothing.

        :param steps: in order: ``("vmas", lo, hi, [(vma, source), ...])``: VMAs that begin in
            [lo, hi) become these; ``source`` is the start of the VMA whose anon_vma a new one
            takes over, or -1.  ``("zap", start, end)``, ``("protect", start, end)``,
            ``("move", old, new, length)``, ``("lock", start, end, on)``, ``("anon", start, end)``:
            the VMA gets its anon_vma.
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
        cdef int rc = -ENOMEM
        cdef int turn = 0
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
            while rc == -ENOMEM and (turn == 0 or self.mmu.make_room(turn)):
                turn += 1
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

    def inode(self, tuple key, int fd):
        """
        Give the frames of a file, which all address spaces of a machine share.

        The caller is one of its ``users`` from now on.

        :param key: (device, inode number).
        :param fd: opened for reading.
        :raises OSError: ENOMEM; EMFILE; ENODEV.
        """
        cdef Inode found
        self.alive()
        found = self.mmu.inodes.get(key)
        if found is None:
            new = Inode(self.mmu, key, fd)
            found = self.mmu.inodes.setdefault(key, new)
            if found is not new:
                (<Inode>new).detach()
        found.users += 1
        return found

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

        :param what: "dontneed", "free", "cold", "guard_install", "guard_remove", "remove",
            "pageout" (what nobody else maps goes to a swap area) or "willneed" (what is in one
            is read ahead).
        :raises OSError: ENOMEM, no page tables for guard markers.
        """
        cdef int rc = -ENOMEM
        cdef int turn = 0
        cdef int advice
        cdef address_space* object
        cdef uint64_t first = 0, last = 0
        self.alive()
        if what == "remove":
            object = mm_object_get(self.mm, self.id, start, end, &first, &last)
            if object != NULL:
                with nogil:
                    mapping_drop(object, first, last, TAKE_OBJECT)
                    mapping_put(object)
            return
        if what == "pageout":
            with nogil:
                reclaim_range(self.mm, self.id, start, end)
            return
        if what == "willneed":
            with nogil:
                rc = swap_will_need(self.mm, self.id, start, end)
            self.check_rc(rc)
            return
        advice = ADVICE[what]
        while rc == -ENOMEM and (turn == 0 or self.mmu.make_room(turn)):
            turn += 1
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
        """Count the pages of a range for smaps; pss and its kin, and locked, are in bytes."""
        cdef range_stat s
        self.count_range(start, end, &s)
        return Smaps(s.rss, s.pss, s.pss_dirty, s.shared_clean, s.shared_dirty,
                     s.private_clean, s.private_dirty, s.referenced, s.anonymous, s.lazyfree,
                     s.huge, 0, 0, s.swap, s.swap_pss, s.pss_locked, s.pss_anon, s.pss_file,
                     s.pss_shmem)

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

    # ---- looking in ----

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
        return (self.mm.core.file_rss, self.mm.core.anon_rss, self.mm.core.swap_ents,
                self.mm.core.shmem_rss)

    @property
    def hiwater(self):
        """The most pages it had: (resident, mapped)."""
        cdef mm_core* core
        self.alive()
        core = self.mm.core
        return max(core.hiwater_rss,
                   core.anon_rss + core.file_rss + core.shmem_rss), core.hiwater_vm

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
    to.file = 0
    behind = vma.object
    if isinstance(behind, Shmem):
        to.object = (<Shmem>behind).object
        if (<Shmem>behind).owned:
            objects.append(behind)
    elif behind is not None:
        to.file = behind.number
        if behind.inode is not None:
            to.object = (<Inode?>behind.inode).object
            if to.object == NULL:
                raise ProcessLookupError(ESRCH, "the file was unmapped meanwhile")
    return 0
