# cython: language_level=3
# Plain built-in methods: a call from Python costs half of what Cython's own kind does.
# cython: binding=False, embedsignature=True, embedsignature.format=clinic
"""kvmalloc() and kvfree(): contiguous memory if that is easy, vmalloc's otherwise."""
from libc.stdint cimport int64_t, uint32_t, uint64_t

from realmem._core.arguments cimport as_gfp, as_int, as_size
from realmem._core.checked_slabs cimport free_debugged
from realmem._core.slabs cimport SlabAllocator
from realmem._core.vmalloc cimport VmallocSpace
from realmem._kernel.kmalloc cimport ZERO_SIZE_PTR, kfree, kmalloc, kmalloc_node
from realmem._kernel.vmem cimport KVMALLOC_MAX_SIZE, kmalloc_gfp_adjust
from realmem.types cimport (
    GFP_DIRECT_RECLAIM, GFP_KERNEL, GFP_ZERO, MAX_PAGE_ORDER, PAGE_SIZE,
)


cdef class KvMalloc:
    """
    What kmalloc() and vmalloc() of one machine give together.

    :param slabs: its slab allocator.
    :param vmalloc: its vmalloc area.
    """

    cdef SlabAllocator slabs
    cdef VmallocSpace area

    def __cinit__(self, SlabAllocator slabs not None, VmallocSpace vmalloc not None):
        self.slabs = slabs
        self.area = vmalloc

    def kvmalloc(self, size, gfp=GFP_KERNEL, node=None):
        """
        Allocate memory: by kmalloc() if that is easy, by vmalloc() otherwise.

        Compare mm/slub.c:__kvmalloc_node_noprof().

        :param size: bytes, or a size such as ``"1M"``.
        :param gfp: what the caller allows; without DIRECT_RECLAIM there is no second way.
        :param node: node id to start from; None means the calling CPU's.
        :return: the address; 16 (ZERO_SIZE_PTR) for size 0.
        :raises OutOfMemory: neither had it.
        :raises ValueError: more than 2 GiB - 1, or flags that could never succeed.
        :raises AtomicContextError: gfp may sleep, and the thread is in atomic_context().
        """
        return self.take(as_size(size, "size"), as_gfp(gfp), self.slabs.pages.as_nid(node))

    def kvzalloc(self, size, gfp=GFP_KERNEL, node=None):
        """Allocate zeroed memory; compare include/linux/slab.h:kvzalloc().  Else as kvmalloc()."""
        return self.take(as_size(size, "size"), as_gfp(gfp) | GFP_ZERO,
                         self.slabs.pages.as_nid(node))

    cdef object take(self, int64_t size, uint32_t gfp, int nid):
        cdef void* object
        cdef uint32_t light = kmalloc_gfp_adjust(gfp, size)
        cdef unsigned int order = 0
        if size < 0 or size > KVMALLOC_MAX_SIZE:
            raise ValueError(f"size {size} is not within 0 and 2 GiB - 1")
        self.slabs.may_alloc(gfp)
        object = (kmalloc(self.slabs.m, size, light) if nid < 0
                  else kmalloc_node(self.slabs.m, size, light, nid))
        if object != NULL:
            if <uint64_t>object > ZERO_SIZE_PTR:
                self.slabs.hand_out(object)
            return <uint64_t>object
        if size <= PAGE_SIZE or not gfp & GFP_DIRECT_RECLAIM:
            while order < MAX_PAGE_ORDER and <int64_t>PAGE_SIZE << order < size:
                order += 1
            raise self.slabs.out_of_memory(f"kvmalloc of {size} bytes", gfp, nid, order)
        return self.area.allocate(size, gfp, nid, 1)

    def kvfree(self, addr):
        """
        Free what kvmalloc() gave, or kmalloc(), or vmalloc(); compare mm/slub.c:kvfree().

        :param addr: the address; 0, None and 16 (ZERO_SIZE_PTR) do nothing.
        :raises AllocatorError: not such an address, or freed already; nothing is changed.
        """
        cdef uint64_t at = 0 if addr is None else <uint64_t>as_int(addr, "addr")
        self.slabs.usable()
        if self.area.covers(at):
            self.area.vfree(at)
        elif at > ZERO_SIZE_PTR:
            if self.slabs.state.nr_debugged != 0 and free_debugged(self.slabs, at):
                return
            self.slabs.take_back(NULL, at)
            kfree(self.slabs.m, <void*>at)
