# cython: language_level=3
# Plain built-in methods: a call from Python costs half of what Cython's own kind does.
# cython: binding=False, embedsignature=True, embedsignature.format=clinic
"""The vmalloc area itself: its addresses, who has which, views of them, its life."""
cimport cython
from cpython.buffer cimport PyBuffer_FillInfo
from libc.errno cimport ENOMEM
from libc.stdint cimport int64_t, uint64_t

from realmem._core.arguments cimport as_int
from realmem._core.faults cimport check_owner
from realmem._core.frames cimport new_page
from realmem._core.mmu cimport Mmu
from realmem._core.pages cimport PageAllocator
from realmem._kernel.mm_types cimport (
    VM_ALLOC, VM_UNINITIALIZED, VMALLOC_MAX_SHIFT, VMAP_CALLER,
)
from realmem._kernel.percpu cimport get_cpu_area
from realmem._kernel.vmap cimport (
    VMAP_NO_PAGES, VMAP_OK, vmap_covers, vmap_exit, vmap_info, vmap_init,
    vmap_lazy_info, vmap_next_info, vmap_to_pfn,
)
from realmem._kernel.window cimport window_reap
from realmem.compiler cimport unlikely
from realmem.types cimport PAGE_SIZE

from realmem._core.faults import Guard
from realmem.errors import AtomicContextError, HostError, OutOfMemory
from realmem.layout import GFP


@cython.no_gc_clear
cdef class VmapSpace:
    """
    The addresses of a machine's vmalloc area.

    They are reserved when they are first used.

    :param core: the machine's page allocator.
    :param paging: weak reference to a callable that gives its part in paging, and the bytes of
        addresses to reserve.
    """

    def __cinit__(self, PageAllocator core not None, paging):
        cdef int i
        self.core = core
        self.paging = paging
        self.deferred = []
        self.callers = {}
        for i in range(core.m.nr_zones):
            self.total_pages += core.m.zones[i].managed_pages

    def __dealloc__(self):
        if self.mmu is not None and not self.closed:
            try:
                self.core.alive()
            except ValueError:
                return
            vmap_exit(&self.space)

    # ---- looking ----

    def is_vmalloc_addr(self, addr):
        """Whether an address lies in the vmalloc area; compare mm/vmalloc.c:is_vmalloc_addr()."""
        self.core.alive()
        return self.covers(as_address(addr))

    def vmalloc_to_page(self, addr):
        """
        Give the Page behind an address, by walking the page tables.

        Compare mm/vmalloc.c:vmalloc_to_page().

        :raises ValueError: nothing is mapped there.
        """
        return new_page(self.core, self.vmalloc_to_pfn(addr))

    def vmalloc_to_pfn(self, addr):
        """Give the frame number behind an address; compare mm/vmalloc.c:vmalloc_to_pfn()."""
        cdef uint64_t at = as_address(addr)
        cdef int64_t pfn = -1
        self.core.usable()
        if self.covers(at):
            pfn = vmap_to_pfn(&self.space, self.kernel(at))
        if pfn < 0:
            raise ValueError(f"{at:#x} is no mapped address of the vmalloc area")
        return pfn

    def view(self, addr, size):
        """
        Open memory of one area as a buffer.

        :return: a memoryview of live addresses; an access after vfree() is a segmentation fault.
        :raises ValueError: the range does not lie in the pages of one area.
        """
        cdef uint64_t at = as_address(addr)
        cdef int64_t length = as_int(size, "size")
        self.core.usable()
        if length <= 0:
            raise ValueError(f"size must be positive: {size}")
        if not self.covers(at) or not vmap_covers(&self.space, self.kernel(at), length):
            raise ValueError(f"[{at:#x}, {at + length:#x}) is not allocated: allocate it first")
        check_owner()
        return memoryview(VmallocBuffer(self, at, length))

    def guard(self):
        """
        Give a context manager that raises forbidden accesses to the vmalloc area at its end.

        :raises SegmentationFault: at the end of the ``with`` block, for this thread's first.
        """
        self.core.usable()
        self.ready()
        return Guard(self.space.mm_id)

    def areas(self):
        """
        List the areas: (start, end, flags, pages, pages on each node, caller) by address.

        Those that wait for a purge come last, with flags 0.
        """
        cdef vmap_info info
        cdef uint64_t at = 0
        cdef int64_t i = 0
        cdef int nid
        cdef list found = []
        self.core.alive()
        if self.mmu is None:
            return found
        while vmap_next_info(&self.space, at, &info):
            at = info.end
            if info.flags & VM_UNINITIALIZED:
                continue
            # What compiled code made may stand where Python's was, which it freed.
            caller = None
            if info.flags & VMAP_CALLER or not info.flags & VM_ALLOC:
                caller = self.callers.get(info.start)
            nodes = {nid: info.nodes[nid] for nid in range(self.core.m.nr_nodes)}
            found.append((self.host(info.start), self.host(info.end), info.flags, info.nr_pages,
                          nodes, name_of(caller)))
        while vmap_lazy_info(&self.space, i, &info):
            found.append((self.host(info.start), self.host(info.end), 0, 0, {}, ""))
            i += 1
        return found

    @property
    def nr_pages(self):
        """Frames that vmalloc() holds."""
        return self.space.nr_pages

    @property
    def lazy_pages(self):
        """Pages of addresses that wait for a purge."""
        return self.space.lazy_pages

    @property
    def nr_purges(self):
        """Purges so far."""
        return self.space.nr_purges

    @property
    def exports(self):
        """Live buffers."""
        if self.mmu is None or self.space.mm.id != self.space.mm_id:
            return 0
        return self.space.mm.exports

    # ---- life ----

    def start_area(self):
        """Reserve the addresses, if that has not been done, for compiled code to use."""
        self.core.usable()
        self.ready()

    cdef int ready(self) except -1:
        if unlikely(self.mmu is None):
            self.open()
        return 0

    cdef int open(self) except -1:
        cdef Mmu mmu
        cdef uint64_t length
        cdef int rc
        start = self.paging()
        if start is None:
            raise ValueError("this machine is gone")
        mmu, window = start()
        self.core.alive()
        if self.closed:
            raise ValueError("this machine is closed")
        if self.mmu is not None:
            return 0                # another thread was faster
        length = min(window, <uint64_t>1 << VMALLOC_MAX_SHIFT)
        rc = vmap_init(&self.space, &mmu.u, &length)
        if rc == VMAP_NO_PAGES:
            window_reap()
            raise OutOfMemory("no memory to describe the vmalloc area", gfp=GFP.KERNEL)
        if rc != VMAP_OK:
            raise HostError(ENOMEM, "no 1 GiB of host address space for the vmalloc area; see "
                                    "ulimit -v")
        self.base = self.space.mm.windows.host_base
        self.start = self.space.mm.windows.user_start
        self.length = length
        self.mmu = mmu
        return 0

    def close(self):
        """Free everything; views that are left answer SEGV_MAPERR."""
        if self.closed:
            return
        self.closed = True
        self.deferred.clear()
        self.callers.clear()
        if self.mmu is not None:
            with nogil:
                vmap_exit(&self.space)
            window_reap()

    # ---- for those who allocate in it ----

    cdef bint covers(self, uint64_t at) noexcept:
        return self.mmu is not None and at - self.base < self.length

    cdef uint64_t host(self, uint64_t addr) noexcept:
        return self.base + (addr - self.start)

    # Addresses outside stay outside.
    cdef uint64_t kernel(self, uint64_t at) noexcept:
        return self.start + (at - self.base) if self.covers(at) else at & (PAGE_SIZE - 1)

    cdef bint in_atomic(self) noexcept:
        return self.core.atomic_contexts and get_cpu_area(self.core.m).atomic_depth > 0

    cdef int may_sleep(self, str what) except -1:
        if unlikely(self.in_atomic()):
            raise AtomicContextError(f"{what} may sleep: not inside atomic_context()")
        return 0


@cython.no_gc_clear              # what its release needs must still be there
cdef class VmallocBuffer:
    """
    Buffer of a range of a vmalloc area.

    :param owner: kept alive, and its addresses kept reserved while views live.
    """

    cdef VmapSpace owner
    cdef char* start
    cdef Py_ssize_t length

    def __cinit__(self, VmapSpace owner not None, uint64_t at, uint64_t length):
        self.owner = owner
        self.start = <char*>at
        self.length = length

    def __getbuffer__(self, Py_buffer* buffer, int flags):
        if self.owner.space.mm.id != self.owner.space.mm_id:
            raise ValueError("this machine is closed")
        PyBuffer_FillInfo(buffer, self, self.start, self.length, False, flags)
        self.owner.space.mm.exports += 1

    def __releasebuffer__(self, Py_buffer* buffer):
        self.owner.space.mm.exports -= 1


cdef uint64_t as_address(addr) except? 1:
    return 0 if addr is None else <uint64_t>as_int(addr, "addr")


# As the kernel prints a code address with %pS: symbol+offset/length.
cdef str name_of(tuple caller):
    if caller is None:
        return ""
    code, offset = caller
    return f"{code.co_name}+{offset:#x}/{len(code.co_code):#x}"
