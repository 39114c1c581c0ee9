# cython: language_level=3
"""Address spaces: a machine's part in paging, one window and its page tables, views of it."""
cimport cython
from cpython.buffer cimport PyBuffer_FillInfo
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from libc.errno cimport ENOMEM, ESRCH
from libc.stdint cimport int64_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free

from realmem._core.faults cimport check_owner, forget, out_of_memory, register
from realmem._core.machine cimport MachineCore
from realmem._kernel.mm_finding cimport MM_OBJECTS, MM_VALID, mm_finding
from realmem._kernel.mm_types cimport (
    FAULT_ACCERR, FAULT_HOST, FAULT_MAPERR, FAULT_OOM, mm_core, mm_struct, vm_area_struct,
)
from realmem._kernel.mmap cimport (
    mm_access, mm_exit, mm_find_pfn, mm_flush, mm_fork, mm_splice, mm_touch, mm_walk,
)
from realmem._kernel.percpu cimport get_cpu_area
from realmem._kernel.pgtable cimport mmu_exit, mmu_init
from realmem._kernel.validate_mm cimport validate_mms
from realmem._kernel.window cimport mm_create, window_reap, windows
from realmem.types cimport PAGE_SHIFT

from realmem._core.own_caches import NAMES
from realmem.errors import (
    AtomicContextError, HostError, InvariantError, OutOfMemory, SegmentationFault,
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
)


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
    :raises OutOfMemory: no frames.
    """

    def __cinit__(self, MachineCore core, fds, int64_t vma_budget):
        cdef int nid
        core.alive()
        self.core = core
        self.u.m = core.m
        self.u.vma_budget = vma_budget
        for nid in range(core.m.nr_nodes):
            self.u.fds[nid] = fds[nid]
            self.u.fd_phys[nid] = core.m.nodes[nid].start_pfn << PAGE_SHIFT
        self.u.nr_fds = core.m.nr_nodes
        if mmu_init(&self.u) != 0:
            raise OutOfMemory("no frames for the kernel's page tables", gfp=GFP.KERNEL)

    def close(self):
        """Give the frames back; every address space has been ended before."""
        if self.u.ready:
            mmu_exit(&self.u)

    @property
    def zero_pfn(self):
        """The shared zero page."""
        return self.u.zero_pfn

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
    cdef readonly uint64_t user_start   # of the window
    cdef readonly uint64_t length
    cdef bint ended

    def __cinit__(self, Mmu mmu not None, int pid, int nid, uint64_t length):
        cdef int error = 0
        mmu.core.alive()
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
        self.user_start = self.mm.user_start
        self.length = length

    def __dealloc__(self):
        forget(self.id)
        # No bytecode runs while mm.lock is held, so that this cannot wait for itself.
        if not self.ended and self.mmu is not None and self.mmu.core.m != NULL:
            if self.is_ours():
                mm_exit(self.mm, self.id)

    cdef bint is_ours(self):
        try:
            self.mmu.core.alive()
        except ValueError:
            return False
        return True

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

    def splice(self, list starts, list vmas, int64_t at, int64_t removed, list added,
               uint64_t start=0, uint64_t end=0):
        """
        Replace VMAs, here and on the kernel side, in one step that nothing can interrupt.

        :param starts: start addresses of ``vmas``; changed with it.
        :param vmas: the sorted list that is published.
        :param at: index of the first VMA to replace.
        :param removed: how many to replace.
        :param added: new VMAs, sorted.
        :param start: with ``end``, the range to zap.
        :param end: one past it.
        :raises OSError: ENOMEM, more VMAs than the index holds, or no memory for them; nothing
            changed.
        """
        cdef int64_t i, n = len(added)
        cdef int rc
        cdef list new_starts
        cdef vm_area_struct* slots = <vm_area_struct*>calloc(n + 1, sizeof(vm_area_struct))
        try:
            if slots == NULL:
                raise MemoryError
            new_starts = [vma.start for vma in added]
            for i in range(n):
                slots[i].vm_start = added[i].start
                slots[i].vm_end = added[i].end
                slots[i].vm_flags = added[i].vm_flags_word
            with nogil:
                rc = mm_splice(self.mm, self.id, at, removed, slots, n, start, end)
            if rc == 0:
                # C code only: no signal handler and no other thread gets in between.
                starts[at:at + removed] = new_starts
                vmas[at:at + removed] = added
        finally:
            free(slots)
        self.check_rc(rc)

    cdef int check_rc(self, int rc) except -1:
        if rc == -ESRCH:
            raise ProcessLookupError(ESRCH, f"process {self.pid} has exited")
        if rc == -ENOMEM:
            raise OSError(ENOMEM, "cannot allocate memory")
        return 0

    def fork_into(self, AddressSpace child not None):
        """
        Share every page with a new, empty address space, copy-on-write.

        :raises OSError: ENOMEM, no frames for its page tables; the child is to be ended.
        """
        cdef int rc
        self.alive()
        check_owner()
        with nogil:
            rc = mm_fork(self.mm, self.id, child.mm)
        self.check_rc(rc)

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

    def host_address(self, uint64_t addr):
        """
        Give the host address of one of the window's.

        :raises ValueError: it is not in the window.
        """
        self.alive()
        check_owner()
        if addr - self.user_start >= self.length:
            raise ValueError(f"{addr:#x} is not in the window of process {self.pid}")
        return self.mm.host_base + (addr - self.user_start)

    def view(self, uint64_t addr, uint64_t length):
        """
        Give a memoryview of the live window.

        :raises ValueError: the range is not all in the window.
        """
        self.alive()
        check_owner()
        if addr < self.user_start or length > self.length or (
                addr - self.user_start > self.length - length):
            raise ValueError(
                f"[{addr:#x}, {addr + length:#x}) is not in the window of process {self.pid}")
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
        cdef uint64_t where = addr
        cdef int rc
        self.alive()
        with nogil:
            rc = mm_touch(self.mm, self.id, addr, n, write, &where)
        self.raise_fault(rc, where, write, where - addr)

    cdef int raise_fault(self, int rc, uint64_t addr, bint write, uint64_t done) except -1:
        access = "write" if write else "read"
        if rc == FAULT_MAPERR or rc == FAULT_ACCERR:
            raise SegmentationFault(addr, access, rc, self.pid, done)
        if rc == FAULT_OOM:
            raise out_of_memory(
                self.id, f"pid {self.pid}: {access} fault at {addr:#x} found no frame")
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

    def addresses_of(self, uint64_t pfn):
        """List the addresses whose entries map a frame."""
        cdef uint64_t found[64]
        cdef uint64_t addr = 0
        cdef int64_t n = 64
        cdef list addresses = []
        while n == 64 and not self.ended:
            with nogil:
                n = mm_find_pfn(self.mm, self.id, pfn, &addr, found, 64)
            addresses.extend([found[i] for i in range(n)])
        return addresses

    @property
    def counters(self):
        """(rss pages, minor faults, major faults, host VMAs)."""
        cdef mm_core* core
        self.alive()
        core = self.mm.core
        return core.anon_rss, core.owner.min_flt, core.owner.maj_flt, self.mm.host_edges + 1


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
        self.space = space
        self.start = <char*>(space.mm.host_base + (addr - space.user_start))
        self.length = length

    def __getbuffer__(self, Py_buffer* buffer, int flags):
        if self.space.mm.id != self.space.id:
            raise ProcessLookupError(ESRCH, "the window is gone")
        PyBuffer_FillInfo(buffer, self, self.start, self.length, False, flags)
        self.space.mm.exports += 1

    def __releasebuffer__(self, Py_buffer* buffer):
        self.space.mm.exports -= 1
