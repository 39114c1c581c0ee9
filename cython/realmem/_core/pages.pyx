# cython: language_level=3
# Plain built-in methods: a call from Python costs half of what Cython's own kind does.
# cython: binding=False, embedsignature=True, embedsignature.format=clinic
"""The page allocator's face: alloc_pages, free_pages and their kin."""
from libc.stdint cimport int64_t, uint32_t, uint64_t

from realmem._core.arguments cimport as_gfp, as_int, as_order
from realmem._core.frames cimport PageArray, new_page, new_page_array
from realmem._kernel.page_alloc cimport (
    alloc_page_interleave, alloc_pages_bulk, alloc_pages_node, split_page,
)
from realmem._kernel.page_free cimport free_pages, free_pages_bulk
from realmem._kernel.percpu cimport get_cpu_area
from realmem.compiler cimport unlikely
from realmem.types cimport (
    GFP_COMP, GFP_DIRECT_RECLAIM, GFP_HIGHMEM, GFP_ZERO, MAX_PAGE_ORDER, PAGE_SHIFT, PAGE_SIZE,
    PAGEBLOCK_ORDER, page, page_address, page_to_pfn, pfn_to_page,
)

from realmem.errors import AllocatorError, AtomicContextError, OutOfMemory
from realmem.layout import GFP, describe_gfp

cdef enum:
    QUICK_PAGES = 1024          # so many take less than what letting other threads in costs


cdef class PageAllocator(PageFrames):
    """
    The page allocator of one machine; its bound methods are the machine's own.

    See MachineCore for the parameters.
    """

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
        if self.traces is not None:
            trace = self.traces[page_to_pfn(self.m, p)]
            for i in range((wanted + PAGE_SIZE - 1) >> PAGE_SHIFT):
                self.traces[page_to_pfn(self.m, p) + i] = trace
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
        cdef int64_t wanted = as_int(n, "n")
        cdef uint32_t flags = as_gfp(gfp)
        cdef int nid = self.as_nid(node)
        cdef PageArray pages
        cdef uint64_t got
        self.may_alloc(flags)
        if wanted < 0:
            raise ValueError(f"n is negative: {n}")
        pages = new_page_array(self, min(<uint64_t>wanted, self.m.max_pfn))
        if self.traces is not None:
            trace = who_calls()         # may raise: before there is anything to give back
        self.may_alloc(flags)           # again: Python code ran, another thread may have closed
        if pages.shape[0] <= QUICK_PAGES:
            got = alloc_pages_bulk(self.m, nid, flags, pages.shape[0], pages.frames)
        else:
            self.busy += 1
            with nogil:
                got = alloc_pages_bulk(self.m, nid, flags, pages.shape[0], pages.frames)
            self.busy -= 1
        pages.truncate(got)
        if unlikely(self.m.nr_bad_pages != self.bad_pages_seen):
            free_pages_bulk(self.m, pages.frames, got)
            self.check_bad_pages()
        if self.traces is not None:
            self.traces.update(dict.fromkeys(memoryview(pages), trace))
        return pages

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
        if unlikely(self.traces is not None) and p.counts.c.refcount == 1:
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
        cdef PageArray array
        cdef Py_ssize_t i
        self.usable()
        if isinstance(pages, PageArray):
            array = pages
            if array.allocator is not self:
                raise AllocatorError(f"{pages!r} belongs to another machine")
        else:
            pfns = [page_to_pfn(self.m, self.page_at(one)) for one in pages]
            if len(set(pfns)) != len(pfns):
                raise AllocatorError("double free: a page stands twice in the sequence")
            array = new_page_array(self, len(pfns))
            for i, pfn in enumerate(pfns):
                array.frames[i] = pfn
        self.usable()           # again: Python code ran, another thread may have closed
        for i in range(array.shape[0]):
            self.check_free(array.frames[i], 0)
        if self.traces is not None:
            for i in range(array.shape[0]):
                if pfn_to_page(self.m, array.frames[i]).counts.c.refcount == 1:
                    self.traces.pop(array.frames[i], None)
        # With the GIL: no other thread may free one of them after it was checked.
        free_pages_bulk(self.m, array.frames, array.shape[0])


# The stack of the caller in Python, innermost last.
cdef str who_calls():
    import traceback

    return "".join(traceback.format_stack()).rstrip()
