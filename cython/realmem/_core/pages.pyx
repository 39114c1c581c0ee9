# cython: language_level=3
# Plain built-in methods: a call from Python costs half of what Cython's own kind does.
# cython: binding=False, embedsignature=True, embedsignature.format=clinic
"""The page allocator's face: alloc_pages, free_pages and their kin; frames as objects."""
cimport cython
from cpython.long cimport PyLong_AsLongLongAndOverflow, PyLong_Check
from libc.stdint cimport int64_t, uint32_t, uint64_t

from realmem._core.faults cimport raise_pending
from realmem._kernel.page_alloc cimport (
    alloc_page_interleave, alloc_pages_bulk, alloc_pages_node, gfp_is_valid, split_page,
)
from realmem._kernel.page_free cimport (
    FREE_ALREADY, FREE_BAD_PFN, FREE_OK, FREE_RESERVED, FREE_TAIL, FREE_WRONG_ORDER, free_check,
    free_pages, free_pages_bulk, get_page, put_page,
)
from realmem._kernel.percpu cimport get_cpu_area
from realmem._kernel.sigsegv cimport handler
from realmem.compiler cimport peek_int, unlikely
from realmem.types cimport (
    GFP_COMP, GFP_DIRECT_RECLAIM, GFP_HIGHMEM, GFP_ZERO, MAX_PAGE_ORDER, NR_PAGEFLAGS,
    PAGE_ALLOCATED, PAGE_BUDDY, PAGE_PCP, PAGE_SHIFT, PAGE_SIZE, PAGEBLOCK_ORDER, PG_tail, page,
    page_address, page_to_pfn, page_zone, pfn_address, pfn_to_page, zone,
)

from realmem.errors import AllocatorError, AtomicContextError, OutOfMemory
from realmem.layout import GFP, MIGRATE_NAMES

cdef enum:
    GFP_BITS_MASK = 0x7FFDFF

FLAG_NAMES = (
    "locked", "referenced", "uptodate", "dirty", "lru", "head", "active", "slab", "reserved",
    "swapbacked", "unevictable", "mlocked", "table", "anon", "anon_exclusive", "tail", "zero",
    "poisoned",
)


cdef class PageAllocator(MachineCore):
    """
    The page allocator of one machine; its bound methods are the machine's own.

    See MachineCore for the parameters.
    """

    def track_owners(self):
        """Remember from now on where each block was allocated."""
        self.traces = {}

    # ---- allocation ----

    def alloc_pages(self, gfp, order, node=None):
        """
        Allocate 2**order physically contiguous pages.

        Compare mm/page_alloc.c:__alloc_pages() => get_page_from_freelist().

        :param gfp: what the caller allows; see GFP.
        :param order: log2 of the number of pages, 0..10.
        :param node: node id to start from; None means the calling CPU's node.
        :return: the first page; its pfn is a multiple of 2**order.
        :raises OutOfMemory: no zone of the zonelist has such a block above its watermark.
        :raises ValueError: an order or flags that could never succeed, or an unknown node.
        :raises AtomicContextError: gfp may sleep, and the thread is in atomic_context().
        """
        return new_page(self, page_to_pfn(
            self.m, self.alloc(as_gfp(gfp), as_order(order), self.as_nid(node))))

    def alloc_pages_node(self, nid, gfp, order):
        """
        Allocate 2**order pages, from node ``nid`` first (-1: the calling CPU's node).

        Compare include/linux/gfp.h:alloc_pages_node().  Errors as for alloc_pages().
        """
        return new_page(self, page_to_pfn(
            self.m, self.alloc(as_gfp(gfp), as_order(order), self.as_nid(nid))))

    def alloc_page_interleave(self, gfp, order, nid):
        """
        Allocate 2**order pages for one step of an interleave over nodes.

        Counts interleave_hit when node ``nid`` serves it.
        Compare mm/mempolicy.c:alloc_pages_mpol().  Errors as for alloc_pages().
        """
        cdef page* p = self.alloc(as_gfp(gfp), as_order(order), self.as_nid(nid), True)
        return new_page(self, page_to_pfn(self.m, p))

    def alloc_pages_exact(self, size, gfp):
        """
        Allocate the pages for ``size`` bytes and give back what an order rounds up.

        Compare mm/page_alloc.c:alloc_pages_exact().

        :param size: bytes.
        :param gfp: what the caller allows.
        :return: kernel logical address of the first page; each page is freed by free_page().
        :raises OutOfMemory: as for alloc_pages().
        :raises ValueError: size is not positive or more than 4 MiB.
        """
        cdef int64_t wanted = as_int(size, "size")
        # Pieces of a compound page could not be freed one by one.
        cdef uint32_t flags = as_gfp(gfp) & ~<uint32_t>GFP_COMP
        cdef unsigned int order = 0
        cdef uint64_t i
        cdef page* p
        if not 0 < wanted <= <int64_t>PAGE_SIZE << MAX_PAGE_ORDER:
            raise ValueError(f"size {size} is not within 1 byte and 4 MiB")
        while <int64_t>PAGE_SIZE << order < wanted:
            order += 1
        p = self.alloc(flags, order, -1)
        split_page(self.m, p, order)
        for i in range((wanted + PAGE_SIZE - 1) >> PAGE_SHIFT, <uint64_t>1 << order):
            free_pages(self.m, p + i, 0)
        return page_address(self.m, p)

    def get_free_pages(self, gfp, order):
        """
        Allocate 2**order pages on the calling CPU's node and give their address.

        Compare mm/page_alloc.c:get_free_pages().  Errors as for alloc_pages().

        :return: kernel logical address, usable as a pointer in this process.
        """
        return page_address(self.m, self.alloc(
            as_gfp(gfp) & ~<uint32_t>GFP_HIGHMEM, as_order(order), -1))

    def get_zeroed_page(self, gfp):
        """Allocate one page of zeroes; compare mm/page_alloc.c:get_zeroed_page()."""
        return page_address(self.m, self.alloc(
            (as_gfp(gfp) | GFP_ZERO) & ~<uint32_t>GFP_HIGHMEM, 0, -1))

    def alloc_pages_bulk(self, gfp, n, node=None):
        """
        Allocate up to n single pages at once.

        Compare mm/page_alloc.c:alloc_pages_bulk_noprof().

        :param gfp: what the caller allows.
        :param n: pages wanted, at least 0.
        :param node: node id to start from; None means the calling CPU's node.
        :return: a PageArray of as many as could be had.
        :raises ValueError: n is negative, the flags are impossible, or an unknown node.
        """
        import numpy

        cdef int64_t wanted = as_int(n, "n")
        cdef uint32_t flags = as_gfp(gfp)
        cdef int nid = self.as_nid(node)
        cdef uint64_t[::1] pfns
        cdef uint64_t got
        self.may_alloc(flags)
        if wanted < 0:
            raise ValueError(f"n is negative: {n}")
        array = numpy.empty(min(<uint64_t>wanted, self.m.max_pfn), dtype=numpy.uint64)
        if array.size == 0:
            return new_page_array(self, array)
        pfns = array
        if self.traces is not None:
            trace = who_calls()         # may raise: before there is anything to give back
        self.may_alloc(flags)           # again: Python code ran, another thread may have closed
        self.busy += 1
        with nogil:
            got = alloc_pages_bulk(self.m, nid, flags, pfns.shape[0], &pfns[0])
        self.busy -= 1
        if unlikely(self.m.nr_bad_pages != self.bad_pages_seen):
            free_pages_bulk(self.m, &pfns[0], got)
            self.check_bad_pages()
        if self.traces is not None:
            self.traces.update(dict.fromkeys(array[:got].tolist(), trace))
        return new_page_array(self, array[:got])

    cdef page* alloc(self, uint32_t gfp, unsigned int order, int nid,
                     bint interleave=False) except NULL:
        cdef page* p
        if unlikely(self.traces is not None):
            trace = who_calls()         # may raise: before there is anything to give back
        self.may_alloc(gfp)
        if unlikely(interleave):
            p = alloc_page_interleave(self.m, nid, gfp, order)
        elif order >= PAGEBLOCK_ORDER and gfp & GFP_ZERO:
            self.busy += 1
            with nogil:
                p = alloc_pages_node(self.m, nid, gfp, order)
            self.busy -= 1
        else:
            p = alloc_pages_node(self.m, nid, gfp, order)
        if unlikely(self.m.nr_bad_pages != self.bad_pages_seen):
            if p != NULL:
                free_pages(self.m, p, order)
            self.check_bad_pages()
        if unlikely(p == NULL):
            raise self.out_of_memory(gfp, order, nid)
        if unlikely(self.traces is not None):
            self.traces[page_to_pfn(self.m, p)] = trace
        return p

    # Alive, and no forbidden raw access of this thread is due.
    cdef int usable(self) except -1:
        self.alive()
        if unlikely(peek_int(&handler.nr_pending) != 0):
            raise_pending()
        return 0

    cdef int may_alloc(self, uint32_t gfp) except -1:
        self.usable()
        if unlikely(self.atomic_contexts and gfp & GFP_DIRECT_RECLAIM):
            if get_cpu_area(self.m).atomic_depth > 0:
                raise AtomicContextError(
                    f"{GFP(gfp)!r} may sleep; use GFP_ATOMIC or GFP_NOWAIT in atomic_context()")
        return 0

    cdef int as_nid(self, node) except -2:
        cdef int64_t nid
        if node is None:
            return -1
        nid = as_int(node, "node")
        self.alive()                # self.m is not even mapped in a forked child
        if unlikely(nid < -1 or nid >= self.m.nr_nodes):
            raise ValueError(f"no node {node}: this machine has nodes 0 to {self.m.nr_nodes - 1}")
        return <int>nid

    def out_of_memory(self, uint32_t gfp, unsigned int order, int nid):
        """Make the exception for a request that found no block; its report is written late."""
        machine = self.owner()
        return OutOfMemory(
            f"page allocation failure: order:{order}, mode:{gfp:#x}({describe_gfp(gfp)}), "
            f"node:{'any' if nid < 0 else nid}",
            order=order, gfp=GFP(gfp), node=None if nid < 0 else nid,
            report=None if machine is None else machine.show_mem)

    cdef int check_bad_pages(self) except -1:
        if self.m.nr_bad_pages == self.bad_pages_seen:
            return 0
        self.bad_pages_seen = self.m.nr_bad_pages
        raise AllocatorError(
            f"pagealloc: memory corruption: free pfn {self.m.bad_pfn} was written to after it "
            f"was freed{self.describe_owner(self.m.bad_pfn)}; it is taken out of use")

    # ---- freeing ----

    def free_pages(self, page_or_addr, order):
        """
        Drop a reference to 2**order pages; the last one frees them.

        Compare mm/page_alloc.c:free_pages(), __free_pages().

        :param page_or_addr: a Page, or a kernel logical address; 0 does nothing.
        :param order: the order they were allocated with.
        :raises AllocatorError: double free, wrong order, or an address that was not given
            out; nothing is changed.
        """
        cdef unsigned int size = as_order(order)
        cdef page* p = self.page_at(page_or_addr)
        if p == NULL:
            return
        self.check_free(page_to_pfn(self.m, p), size)
        if unlikely(self.traces is not None):
            self.traces.pop(page_to_pfn(self.m, p), None)
        free_pages(self.m, p, size)

    def free_page(self, page_or_addr):
        """Drop a reference to a single page; see free_pages()."""
        self.free_pages(page_or_addr, 0)

    def free_pages_bulk(self, pages):
        """
        Free single pages at once.

        :param pages: a PageArray, or any sequence of Page objects and addresses.
        :raises AllocatorError: one of them cannot be freed, or stands there twice; then
            none is.
        """
        import numpy

        cdef const uint64_t[::1] pfns
        cdef uint64_t i
        self.alive()
        if isinstance(pages, PageArray):
            if (<PageArray>pages).allocator is not self:
                raise AllocatorError(f"{pages!r} belongs to another machine")
            array = pages.pfns
        else:
            array = numpy.array([page_to_pfn(self.m, self.page_at(one)) for one in pages],
                                dtype=numpy.uint64)
        if array.size == 0:
            return
        if numpy.unique(array).size != array.size:
            raise AllocatorError("double free: a page stands twice in the sequence")
        pfns = array
        self.alive()            # again: Python code ran, another thread may have closed
        for i in range(<uint64_t>pfns.shape[0]):
            self.check_free(pfns[i], 0)
        if self.traces is not None:
            for pfn in array:
                self.traces.pop(int(pfn), None)
        # With the GIL: no other thread may free one of them after it was checked.
        free_pages_bulk(self.m, &pfns[0], pfns.shape[0])

    # The page that a Page or an address names; NULL for address 0.
    cdef page* page_at(self, object page_or_addr) except? NULL:
        cdef int64_t addr
        cdef int overflow = 0
        self.usable()
        if isinstance(page_or_addr, Page):
            if (<Page>page_or_addr).allocator is not self:
                raise AllocatorError(f"{page_or_addr!r} belongs to another machine")
            return pfn_to_page(self.m, (<Page>page_or_addr)._pfn)
        if PyLong_Check(page_or_addr):
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
        if why == FREE_OK:
            return 0
        where = f"pfn {pfn} ({pfn_address(self.m, pfn):#x})"
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
        self.alive()
        if <uint64_t>at - self.m.direct_map >= self.m.max_pfn << PAGE_SHIFT:
            raise ValueError(f"{at:#x} is not a kernel logical address of this machine")
        return self.pfn_to_page((<uint64_t>at - self.m.direct_map) >> PAGE_SHIFT)

    def pfn_to_page(self, pfn):
        """
        Give the Page of a frame number.

        :raises ValueError: there is no such frame.
        """
        cdef int64_t at = as_int(pfn, "pfn")
        self.alive()
        if at < 0 or free_check(self.m, at, 0) == FREE_BAD_PFN:
            raise ValueError(f"no memory at pfn {pfn}")
        return new_page(self, at)

    def view(self, addr, size):
        """
        Open allocated kernel memory as a buffer.

        :param addr: kernel logical address.
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
            raise ValueError(f"{at:#x} is not a kernel logical address of this machine")
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
cdef class Frames:
    cdef PageAllocator allocator
    cdef uint64_t addr
    cdef Py_ssize_t shape[1]
    cdef Py_ssize_t strides[1]

    def __cinit__(self, PageAllocator allocator not None, uint64_t addr, Py_ssize_t size):
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

        :raises AllocatorError: the page is free.
        """
        get_page(self.referenced())

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
    """
    Single pages that were allocated together: a sequence of Page objects.

    :ivar pfns: their frame numbers, a uint64 array that cannot be written.
    """

    def __init__(self):
        raise TypeError("a PageArray comes from a machine: alloc_pages_bulk()")

    def __len__(self):
        return len(self.pfns)

    def __getitem__(self, index):
        if isinstance(index, slice):
            return new_page_array(self.allocator, self.pfns[index].copy())
        return new_page(self.allocator, self.pfns[index])

    def __iter__(self):
        for pfn in self.pfns.tolist():
            yield new_page(self.allocator, pfn)

    def __eq__(self, other):
        if not isinstance(other, (PageArray, list, tuple)):
            return NotImplemented
        return list(self) == list(other)

    def __repr__(self):
        return f"<realmem.PageArray of {len(self)} pages>"


cdef inline Page new_page(PageAllocator allocator, uint64_t pfn):
    cdef Page self = Page.__new__(Page)
    self.allocator = allocator
    self._pfn = pfn
    return self


cdef PageArray new_page_array(PageAllocator allocator, pfns):
    cdef PageArray self = PageArray.__new__(PageArray)
    self.allocator = allocator
    pfns.setflags(write=False)          # what is freed by it was allocated by it
    self.pfns = pfns
    return self


# ---- arguments --------------------------------------------------------------

cdef inline int64_t as_int(object value, str what) except? -1:
    cdef int overflow = 0
    cdef int64_t result
    if unlikely(not PyLong_Check(value)):
        if not hasattr(value, "__index__"):
            raise TypeError(f"{what} must be an int, not {type(value).__name__}")
        value = value.__index__()
    result = PyLong_AsLongLongAndOverflow(value, &overflow)
    if unlikely(overflow):
        raise ValueError(f"{what} is out of range: {value}")
    return result


cdef inline unsigned int as_order(object order) except? 99:
    cdef int64_t value = as_int(order, "order")
    if unlikely(value < 0 or value > MAX_PAGE_ORDER):
        raise ValueError(f"order {value} is not within 0 and {MAX_PAGE_ORDER}")
    return <unsigned int>value


cdef inline uint32_t as_gfp(object gfp) except? 0xFFFFFFFF:
    cdef int64_t value = as_int(gfp, "gfp")
    if unlikely(value & ~<int64_t>GFP_BITS_MASK):
        raise ValueError(f"gfp has unknown bits: {value:#x}")
    if unlikely(not gfp_is_valid(<uint32_t>value)):
        raise ValueError(f"gfp names an impossible zone or type: {GFP(value)!r}")
    return <uint32_t>value


# The combinations that reports name, those with the most flags first.
GFP_NAMES = (
    "TRANSHUGE", "TRANSHUGE_LIGHT", "HIGHUSER_MOVABLE", "HIGHUSER", "USER", "KERNEL_ACCOUNT",
    "KERNEL", "NOFS", "ATOMIC", "NOIO", "NOWAIT", "DMA", "DMA32",
)


def describe_gfp(gfp):
    """Name a set of GFP flags the way the kernel's reports do (%pGg)."""
    names = []
    left = int(gfp)
    for name in GFP_NAMES:
        flags = int(GFP[name])
        if left & flags == flags:
            names.append(f"GFP_{name}")
            left &= ~flags
    names += [f"__GFP_{flag.name}" for flag in GFP if flag & left and flag & (flag - 1) == 0]
    return "|".join(names) or "0"


# The stack of the caller in Python, innermost last.
cdef str who_calls():
    import traceback

    return "".join(traceback.format_stack()).rstrip()


def _register():
    from collections.abc import Sequence

    Sequence.register(PageArray)


_register()
