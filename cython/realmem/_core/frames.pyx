# cython: language_level=3
# Plain built-in methods: a call from Python costs half of what Cython's own kind does.
# cython: binding=False, embedsignature=True, embedsignature.format=clinic
"""Frames as Python sees them: Page and PageArray, and the addresses of kernel memory."""
cimport cython
from cpython.bool cimport PyBool_Check
from cpython.buffer cimport PyBUF_WRITABLE
from cpython.long cimport PyLong_AsLongLongAndOverflow, PyLong_Check
from cpython.mem cimport PyMem_Free, PyMem_Malloc, PyMem_Realloc
from cpython.number cimport PyNumber_AsSsize_t
from libc.stdint cimport int64_t, uint64_t
from libc.string cimport memcmp

from realmem._core.arguments cimport as_int
from realmem._core.faults cimport raise_pending
from realmem._kernel.kmalloc cimport is_large_kmalloc
from realmem._kernel.page_free cimport (
    FREE_ALREADY, FREE_BAD_PFN, FREE_OK, FREE_RESERVED, FREE_TAIL, FREE_WRONG_ORDER, free_check,
    get_page, put_page,
)
from realmem._kernel.sigsegv cimport handler
from realmem.compiler cimport peek_int, unlikely
from realmem.types cimport (
    NR_PAGEFLAGS, PAGE_ALLOCATED, PAGE_BUDDY, PAGE_PCP, PAGE_SHIFT, PAGE_SIZE, PAGEBLOCK_ORDER,
    PG_quicklist, PG_tail, page, page_to_pfn, page_zone, pfn_address, pfn_to_page, zone,
)

from realmem.errors import AllocatorError
from realmem.layout import MIGRATE_NAMES

FLAG_NAMES = (
    "locked", "referenced", "uptodate", "dirty", "lru", "head", "active", "slab", "reserved",
    "swapbacked", "unevictable", "mlocked", "table", "anon", "anon_exclusive", "tail", "zero",
    "poisoned", "quicklist", "vmalloc", "file", "swapcache", "young", "shmem",
)


cdef class PageFrames(MachineCore):
    """
    The frames of one machine: their addresses, their owners, what may be freed.

    See MachineCore for the parameters.
    """

    def track_owners(self):
        """Remember from now on where each block was allocated."""
        self.traces = {}

    # Alive, and no forbidden raw access of this thread is due.
    cdef int usable(self) except -1:
        self.alive()
        if unlikely(peek_int(&handler.nr_pending) != 0):
            raise_pending()
        return 0

    # The page that a Page or an address names; NULL for address 0.
    cdef page* page_at(self, object page_or_addr) except? NULL:
        cdef int64_t addr
        cdef int overflow = 0
        self.usable()
        if isinstance(page_or_addr, Page):
            if (<Page>page_or_addr).allocator is not self:
                raise AllocatorError(f"{page_or_addr!r} belongs to another machine")
            return pfn_to_page(self.m, (<Page>page_or_addr)._pfn)
        if PyLong_Check(page_or_addr) and not PyBool_Check(page_or_addr):
            addr = PyLong_AsLongLongAndOverflow(page_or_addr, &overflow)
            if unlikely(overflow):
                raise AllocatorError(
                    f"bad pointer: {page_or_addr:#x} is not the address of a page here")
        else:
            addr = as_int(page_or_addr, "page_or_addr")
            self.alive()                # again: __index__ may have closed the machine
        if addr == 0:
            return NULL
        if unlikely(addr & (PAGE_SIZE - 1)
                    or <uint64_t>addr - self.m.direct_map >= self.m.max_pfn << PAGE_SHIFT):
            raise AllocatorError(f"bad pointer: {addr:#x} is not the address of a page here")
        return pfn_to_page(self.m, (<uint64_t>addr - self.m.direct_map) >> PAGE_SHIFT)

    cdef int check_free(self, uint64_t pfn, unsigned int order) except -1:
        cdef int why = free_check(self.m, pfn, order)
        if why == FREE_OK and not unlikely(is_large_kmalloc(pfn_to_page(self.m, pfn))
                                           and pfn_to_page(self.m, pfn).counts.c.refcount == 1):
            return 0
        where = f"pfn {pfn} ({pfn_address(self.m, pfn):#x})"
        if why == FREE_OK:
            raise AllocatorError(f"bad free: {where} came from kmalloc(): kfree() it")
        if why == FREE_BAD_PFN:
            raise AllocatorError(f"bad pointer: there is no memory at {where}")
        if why == FREE_RESERVED:
            raise AllocatorError(f"bad free: {where} is reserved")
        if why == FREE_ALREADY:
            raise AllocatorError(f"double free: {where} is free{self.describe_owner(pfn)}")
        if why == FREE_TAIL:
            raise AllocatorError(f"bad free: {where} lies inside an allocated block")
        if why == FREE_WRONG_ORDER:
            raise AllocatorError(
                f"wrong-order free: {where} was allocated with order "
                f"{pfn_to_page(self.m, pfn).kind.h.order}, not {order}"
                f"{self.describe_owner(pfn)}")
        raise AllocatorError(f"bad free: {where} is still in use, mapped or on a list")

    def describe_owner(self, uint64_t pfn):
        """Say where a block was allocated, if tracking is on: text to append, or ''."""
        if self.traces is None or pfn not in self.traces:
            return ""
        return f"; allocated at:\n{self.traces[pfn]}"

    # ---- addresses ----

    def va(self, phys):
        """
        Give the kernel logical address of a physical address (Linux's __va).

        :raises ValueError: there is no memory at it.
        """
        cdef int64_t at = as_int(phys, "phys")
        self.pfn_to_page(at >> PAGE_SHIFT)
        return self.m.direct_map + <uint64_t>at

    def pa(self, addr):
        """
        Give the physical address of a kernel logical address (Linux's __pa).

        :raises ValueError: it is not one.
        """
        cdef int64_t at = as_int(addr, "addr")
        self.virt_to_page(at)
        return <uint64_t>at - self.m.direct_map

    def virt_to_page(self, addr):
        """
        Give the Page that holds a kernel logical address.

        :raises ValueError: it is not one.
        """
        cdef int64_t at = as_int(addr, "addr")
        self.usable()
        if <uint64_t>at - self.m.direct_map >= self.m.max_pfn << PAGE_SHIFT:
            raise ValueError(f"{at:#x} is not a kernel logical address of this machine")
        return self.pfn_to_page((<uint64_t>at - self.m.direct_map) >> PAGE_SHIFT)

    def pfn_to_page(self, pfn):
        """
        Give the Page of a frame number.

        :raises ValueError: there is no such frame.
        """
        cdef int64_t at = as_int(pfn, "pfn")
        self.usable()
        if at < 0 or free_check(self.m, at, 0) == FREE_BAD_PFN:
            raise ValueError(f"no memory at pfn {pfn}")
        return new_page(self, at)

    def view(self, addr, size):
        """
        Open allocated kernel memory as a buffer.

        :param addr: kernel logical address, or one of the vmalloc area.
        :param size: bytes, more than 0.
        :return: a writable memoryview of bytes.
        :raises ValueError: not kernel addresses, or not all of it is allocated.
        """
        cdef int64_t at = as_int(addr, "addr")
        cdef int64_t length = as_int(size, "size")
        cdef uint64_t offset
        self.usable()
        offset = <uint64_t>at - self.m.direct_map
        if length <= 0:
            raise ValueError(f"size must be positive: {size}")
        if offset >= self.m.max_pfn << PAGE_SHIFT:
            machine = self.owner()
            if machine is not None and machine.is_vmalloc_addr(at):
                return machine._vmalloc.view(at, length)
            raise ValueError(f"{at:#x} is not a kernel address of this machine")
        self.check_allocated(offset >> PAGE_SHIFT,
                             (offset + <uint64_t>length + PAGE_SIZE - 1) >> PAGE_SHIFT)
        return memoryview(Frames(self, at, length))

    # Every frame of [pfn, end) lies in an allocated block.
    cdef int check_allocated(self, uint64_t pfn, uint64_t end) except -1:
        cdef uint64_t head = pfn
        cdef unsigned int order = 0
        if free_check(self.m, pfn, 0) == FREE_TAIL:
            while free_check(self.m, head, 0) == FREE_TAIL:
                order += 1
                head = pfn & ~((<uint64_t>1 << order) - 1)
        while head < end:
            if (free_check(self.m, head, 0) == FREE_BAD_PFN
                    or pfn_to_page(self.m, head).kind.h.state != PAGE_ALLOCATED):
                raise ValueError(
                    f"{pfn_address(self.m, head):#x} is not allocated: allocate it first")
            head += <uint64_t>1 << pfn_to_page(self.m, head).kind.h.order
        return 0


# A buffer over frames; a closing machine waits for it, or leaves the addresses reserved.
@cython.no_gc_clear              # what its release needs must still be there
cdef class Frames:
    cdef PageFrames allocator
    cdef uint64_t addr
    cdef Py_ssize_t shape[1]
    cdef Py_ssize_t strides[1]

    def __cinit__(self, PageFrames allocator not None, uint64_t addr, Py_ssize_t size):
        self.allocator = allocator
        self.addr = addr
        self.shape[0] = size
        self.strides[0] = 1

    def __getbuffer__(self, Py_buffer* buffer, int flags):
        buffer.buf = <void*>self.addr
        buffer.format = "B"
        buffer.internal = NULL
        buffer.itemsize = 1
        buffer.len = self.shape[0]
        buffer.ndim = 1
        buffer.obj = self
        buffer.readonly = 0
        buffer.shape = self.shape
        buffer.strides = self.strides
        buffer.suboffsets = NULL
        self.allocator.exports += 1

    def __releasebuffer__(self, Py_buffer* buffer):
        self.allocator.exports -= 1
        if self.allocator.exports == 0 and self.allocator.on_last_release is not None:
            self.allocator.on_last_release()


@cython.freelist(64)
cdef class Page:
    """A frame, or the first frame of a block: what struct page says of it now."""

    def __init__(self):
        raise TypeError("a Page comes from a machine: alloc_pages(), pfn_to_page()")

    @property
    def pfn(self):
        """Page frame number."""
        return self._pfn

    @property
    def phys(self):
        """Simulated physical address."""
        return self._pfn << PAGE_SHIFT

    @property
    def address(self):
        """Kernel logical address."""
        self.raw()
        return pfn_address(self.allocator.m, self._pfn)

    @property
    def node(self):
        """Node id."""
        return page_zone(self.allocator.m, self.raw()).nid

    @property
    def zone(self):
        """The Zone it lies in."""
        cdef zone* z = page_zone(self.allocator.m, self.raw())
        return self.machine().zone_by_index(z.index)

    @property
    def order(self):
        """Order of the block that it heads; 0 for a frame inside a block."""
        return self.raw().kind.h.order

    @property
    def refcount(self):
        """References held; 0 while free."""
        return self.raw().counts.c.refcount

    @property
    def mapcount(self):
        """Number of page-table entries that map it."""
        return self.raw().counts.c.mapcount + 1

    @property
    def flags(self):
        """Names of the flags set, and ``buddy`` or ``pcp`` for the head of a free block."""
        cdef page* p = self.raw()
        names = {FLAG_NAMES[i] for i in range(NR_PAGEFLAGS) if p.flags >> i & 1}
        if p.kind.h.state == PAGE_BUDDY:
            names.add("buddy")
        elif p.kind.h.state == PAGE_PCP:
            names.add("pcp")
        return frozenset(names)

    @property
    def migratetype(self):
        """Type of the pageblock it lies in."""
        cdef zone* z = page_zone(self.allocator.m, self.raw())
        return MIGRATE_NAMES[z.pageblock[(self._pfn >> PAGEBLOCK_ORDER) - z.pageblock_start]]

    @property
    def owner(self):
        """Where it was allocated, as text; None unless the machine tracks owners."""
        self.raw()
        if self.allocator.traces is None:
            return None
        return self.allocator.traces.get(self._pfn)

    @property
    def mappings(self):
        """The mappings of it: a list of (pid, address)."""
        self.raw()
        return self.machine().mappings_of(self._pfn)

    def get(self):
        """
        Take a reference; compare include/linux/mm.h:get_page().

        :raises AllocatorError: the page is free, or spare for page tables.
        """
        cdef page* p = self.referenced()
        # It is given out and up with no look at its count.
        if unlikely(p.flags >> PG_quicklist & 1):
            raise AllocatorError(f"pfn {self._pfn} is on a quicklist: nobody uses it")
        get_page(p)

    def put(self):
        """
        Drop a reference; the last one frees the block.  Compare put_page().

        :raises AllocatorError: the page is free.
        """
        cdef page* p = self.referenced()
        if p.counts.c.refcount == 1 or p.counts.c.mapcount >= 0:
            self.allocator.check_free(page_to_pfn(self.allocator.m, p), p.kind.h.order)
            if self.allocator.traces is not None and p.counts.c.refcount == 1:
                self.allocator.traces.pop(page_to_pfn(self.allocator.m, p), None)
        put_page(self.allocator.m, p)

    cdef page* raw(self) except NULL:
        if unlikely(self.allocator is None):
            raise ValueError("this Page is of no machine")
        self.allocator.usable()
        return pfn_to_page(self.allocator.m, self._pfn)

    # A page keeps the memory, not the Machine that nobody holds any more.
    cdef object machine(self):
        machine = self.allocator.owner()
        if machine is None:
            raise ValueError("this page's machine is gone")
        return machine

    # The page that holds this one's references: itself, or its compound head.
    cdef page* referenced(self) except NULL:
        cdef page* p = self.raw()
        if p.flags >> PG_tail & 1:
            p = <page*>p.index
        if p.counts.c.refcount <= 0:
            raise AllocatorError(f"pfn {self._pfn} is free: it has no reference to share or drop")
        return p

    def __eq__(self, other):
        if not isinstance(other, Page):
            return NotImplemented
        return (self._pfn == (<Page>other)._pfn
                and self.allocator is (<Page>other).allocator)

    def __hash__(self):
        return hash((id(self.allocator), self._pfn))

    def __repr__(self):
        return f"<realmem.Page pfn={self._pfn}>"


cdef class PageArray:
    """Single pages that were allocated together: a sequence of Page objects."""

    def __init__(self):
        raise TypeError("a PageArray comes from a machine: alloc_pages_bulk()")

    def __dealloc__(self):
        PyMem_Free(self.frames)

    @property
    def pfns(self):
        """Their frame numbers: a uint64 array, read-only."""
        import numpy

        # What is freed by it was allocated by it.
        return numpy.asarray(memoryview(self))

    def __getbuffer__(self, Py_buffer* buffer, int flags):
        if flags & PyBUF_WRITABLE:
            raise BufferError("a PageArray cannot be written")
        buffer.buf = self.frames
        buffer.format = "Q"
        buffer.internal = NULL
        buffer.itemsize = sizeof(uint64_t)
        buffer.len = self.shape[0] * sizeof(uint64_t)
        buffer.ndim = 1
        buffer.obj = self
        buffer.readonly = 1
        buffer.shape = self.shape
        buffer.strides = &buffer.itemsize
        buffer.suboffsets = NULL

    def __len__(self):
        return self.shape[0]

    def __getitem__(self, index):
        cdef Py_ssize_t i, start, stop, step
        cdef PageArray part
        if isinstance(index, slice):
            start, stop, step = index.indices(self.shape[0])
            part = new_page_array(self.allocator, len(range(start, stop, step)))
            for i in range(part.shape[0]):
                part.frames[i] = self.frames[start + i * step]
            return part
        i = PyNumber_AsSsize_t(index, IndexError)
        if i < 0:
            i += self.shape[0]
        if not 0 <= i < self.shape[0]:
            raise IndexError(f"index {index} is not within {self.shape[0]} pages")
        return new_page(self.allocator, self.frames[i])

    def __iter__(self):
        cdef Py_ssize_t i
        for i in range(self.shape[0]):
            yield new_page(self.allocator, self.frames[i])

    def __eq__(self, other):
        if isinstance(other, PageArray):
            return (self.allocator is (<PageArray>other).allocator
                    and self.shape[0] == (<PageArray>other).shape[0]
                    and memcmp(self.frames, (<PageArray>other).frames,
                               self.shape[0] * sizeof(uint64_t)) == 0)
        if not isinstance(other, (list, tuple)):
            return NotImplemented
        return list(self) == list(other)

    def index(self, value, start=0, stop=2**63 - 1):
        """
        Give the place of a page, as for a list.

        :raises ValueError: it is not there.
        """
        return list(self).index(value, start, stop)

    def count(self, value):
        """Give how often a page stands in it: once or never."""
        return list(self).count(value)

    def __repr__(self):
        return f"<realmem.PageArray of {self.shape[0]} pages>"

    # Only the first n pages were got.
    cdef int truncate(self, Py_ssize_t n) except -1:
        cdef void* less
        if n < self.shape[0]:
            less = PyMem_Realloc(self.frames, max(n, 1) * sizeof(uint64_t))
            if less != NULL:
                self.frames = <uint64_t*>less
            self.shape[0] = n
        return 0


cdef PageArray new_page_array(PageFrames allocator, Py_ssize_t n):
    cdef PageArray self = PageArray.__new__(PageArray)
    self.allocator = allocator
    self.frames = <uint64_t*>PyMem_Malloc(max(n, 1) * sizeof(uint64_t))
    if self.frames == NULL:
        raise MemoryError
    self.shape[0] = n
    return self


cdef Page new_page(PageFrames allocator, uint64_t pfn):
    cdef Page self = Page.__new__(Page)
    self.allocator = allocator
    self._pfn = pfn
    return self


def _register():
    from collections.abc import Sequence

    Sequence.register(PageArray)


_register()
