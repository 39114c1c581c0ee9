# cython: language_level=3
# Plain built-in methods: a call from Python costs half of what Cython's own kind does.
# cython: binding=False, embedsignature=True, embedsignature.format=clinic
# cython: cdivision=True
"""The face of kmalloc(), kfree() and their kin; its bound methods are the machine's own."""
from libc.stdint cimport int64_t, uint32_t, uint64_t
from libc.string cimport memcpy

from realmem._core.arguments cimport as_gfp, as_int, as_size
from realmem._core.checked_slabs cimport alloc_checked, caller, free_debugged
from realmem._core.slabs cimport SlabAllocator
from realmem._kernel.fault_inject cimport should_fail
from realmem._kernel.kmalloc cimport (
    KMALLOC_MAX_SIZE, ZERO_SIZE_PTR, kfree, kmalloc, kmalloc_node, kmalloc_slab, krealloc, ksize,
    slab_ksize,
)
from realmem._kernel.percpu cimport fork_generation
from realmem._kernel.sigsegv cimport handler
from realmem._kernel.slab_check cimport get_orig_size, has_orig_size
from realmem._kernel.slab_debug cimport cache_of
from realmem._kernel.slab_types cimport SLAB_DEBUG_FLAGS, kmem_cache
from realmem.compiler cimport peek_int, unlikely
from realmem.types cimport (
    GFP_KERNEL, GFP_NOFAIL, GFP_ZERO, INJECT_SLAB, MACHINE_INJECT_SLAB, machine,
)

from realmem.errors import AllocatorError
from realmem.layout import GFP

cdef object KERNEL = GFP.KERNEL


cdef class Kmalloc:
    """
    Allocation by size, of one machine.

    :param slabs: its slab allocator.
    """

    cdef SlabAllocator slabs

    def __cinit__(self, SlabAllocator slabs not None):
        self.slabs = slabs

    def kmalloc(self, size, gfp=KERNEL):
        """
        Allocate ``size`` bytes that are contiguous in physical memory.

        Compare include/linux/slab.h:kmalloc(): up to 8 KiB come from the generic caches, more
        from the page allocator.

        :param size: bytes, up to 4 MiB, or a string such as "64K".
        :param gfp: what the caller allows.
        :return: kernel logical address; 16 (ZERO_SIZE_PTR) for size 0.
        :raises OutOfMemory: there are no pages.
        :raises ValueError: a size or flags that could never succeed.
        :raises AtomicContextError: gfp may sleep, and the thread is in atomic_context().
        """
        return self.take(as_size(size, "size"), GFP_KERNEL if gfp is KERNEL else as_gfp(gfp), -1)

    def kzalloc(self, size, gfp=KERNEL):
        """Allocate ``size`` zero bytes; see kmalloc()."""
        return self.take(as_size(size, "size"),
                         GFP_ZERO | (GFP_KERNEL if gfp is KERNEL else as_gfp(gfp)), -1)

    def kmalloc_node(self, size, gfp=KERNEL, node=None):
        """Allocate ``size`` bytes from a node, None for the calling CPU's; see kmalloc()."""
        return self.take(as_size(size, "size"), as_gfp(gfp), self.slabs.pages.as_nid(node))

    def kcalloc(self, n, size, gfp=KERNEL):
        """
        Allocate an array of n times ``size`` zero bytes; see kmalloc().

        :raises ValueError: also where the product is more than could be allocated.
        """
        cdef int64_t count = as_int(n, "n")
        cdef int64_t each = as_size(size, "size")
        if count < 0 or each < 0:
            raise ValueError(f"{n} times {size} bytes")
        if each and count > <int64_t>KMALLOC_MAX_SIZE / each:
            raise ValueError(f"{n} times {size} bytes are more than kmalloc() can give")
        return self.take(count * each, GFP_ZERO | as_gfp(gfp), -1)

    cdef uint64_t take(self, int64_t size, uint32_t gfp, int nid) except 0:
        cdef void* object
        if unlikely(size < 0 or size > KMALLOC_MAX_SIZE):
            raise ValueError(f"size {size} is not within 0 and {KMALLOC_MAX_SIZE} bytes")
        self.slabs.may_alloc(gfp)
        if unlikely(self.slabs.state.nr_debugged != 0) and self.is_debugged(size, gfp):
            object = self.take_debugged(size, gfp, nid)
        elif nid < 0:
            object = kmalloc(self.slabs.m, size, gfp)
        else:
            object = kmalloc_node(self.slabs.m, size, gfp, nid)
        if unlikely(<uint64_t>object <= ZERO_SIZE_PTR):
            if object != NULL:
                return ZERO_SIZE_PTR
            raise self.fail(size, gfp, nid)
        self.slabs.hand_out(object)
        return <uint64_t>object

    cdef bint is_debugged(self, uint64_t size, uint32_t gfp):
        cdef const kmem_cache* s = kmalloc_slab(self.slabs.m, size, gfp)
        return s != NULL and s.flags & SLAB_DEBUG_FLAGS

    cdef void* take_debugged(self, uint64_t size, uint32_t gfp, int nid) except? NULL:
        cdef machine* m = self.slabs.m
        cdef kmem_cache* s = kmalloc_slab(m, size, gfp)
        cdef uint32_t handle = caller(self.slabs, s)
        if (m.options & MACHINE_INJECT_SLAB and not gfp & GFP_NOFAIL
                and should_fail(&m.faults[INJECT_SLAB])):
            return NULL
        return alloc_checked(self.slabs, s, gfp, nid, size, handle)

    def fail(self, int64_t size, uint32_t gfp, int nid):
        """Make the exception for a request that found no pages."""
        cdef unsigned int order = 0
        while <int64_t>4096 << order < size:
            order += 1
        return self.slabs.out_of_memory(f"kmalloc of {size} bytes", gfp, nid, order)

    def kfree(self, addr):
        """
        Give back what kmalloc() or a cache gave; 0 and ZERO_SIZE_PTR do nothing.

        Compare mm/slub.c:kfree().

        :raises AllocatorError: not the address of a live object; nothing is changed.
        """
        cdef uint64_t at = <uint64_t>as_int(addr, "addr")
        if unlikely(self.slabs.pages.m == NULL
                    or self.slabs.pages.generation != fork_generation
                    or peek_int(&handler.nr_pending) != 0):
            self.slabs.usable()
        if unlikely(at == 0 or at == ZERO_SIZE_PTR):
            return
        if unlikely(self.slabs.state.nr_debugged != 0) and free_debugged(self.slabs, at):
            return
        self.slabs.take_back(NULL, at)
        kfree(self.slabs.m, <void*>at)

    def ksize(self, addr):
        """
        Count the bytes that may be used behind an address; 0 for 0 and ZERO_SIZE_PTR.

        Compare mm/slab_common.c:ksize().

        :raises AllocatorError: not the address of a live object.
        """
        cdef uint64_t at = self.live(addr)
        return 0 if at <= ZERO_SIZE_PTR else ksize(self.slabs.m, <void*>at)

    def krealloc(self, addr, size, gfp=KERNEL):
        """
        Give an object room for ``size`` bytes, in place where it has that already.

        Compare mm/slub.c:krealloc().

        :param addr: the object; 0 and ZERO_SIZE_PTR make it a kmalloc().
        :param size: bytes; 0 frees it.
        :param gfp: what the caller allows; with GFP.ZERO what is cut off is cleared.
        :return: its address; ZERO_SIZE_PTR for size 0.
        :raises OutOfMemory: there are no pages; the object stays as it is.
        :raises AllocatorError: not the address of a live object, or one that would have to move
            and is found corrupted; it stays as it is.
        """
        cdef int64_t wanted = as_size(size, "size")
        cdef uint32_t flags = as_gfp(gfp)
        cdef uint64_t at = self.live(addr)
        cdef void* moved
        cdef int theirs
        if at <= ZERO_SIZE_PTR or wanted < 0 or wanted > KMALLOC_MAX_SIZE:
            return self.take(wanted, flags, -1)
        if wanted == 0:
            self.kfree(at)
            return ZERO_SIZE_PTR
        self.slabs.may_alloc(flags)
        if unlikely(self.slabs.state.nr_debugged != 0) and self.moves_debugged(at, wanted):
            return self.move_debugged(at, wanted, flags)
        theirs = self.slabs.take_back(NULL, at)     # compiled code's, until it is moved
        moved = krealloc(self.slabs.m, <void*>at, wanted, flags)
        if not theirs and moved == NULL:
            self.slabs.hand_out(<void*>at)
        if moved == NULL:
            raise self.fail(wanted, flags, -1)
        if not theirs or <uint64_t>moved != at:
            self.slabs.hand_out(moved)
        return <uint64_t>moved

    cdef bint moves_debugged(self, uint64_t addr, uint64_t size):
        cdef const kmem_cache* s = cache_of(self.slabs.m, <void*>addr)
        return s != NULL and s.flags & SLAB_DEBUG_FLAGS and size > slab_ksize(s)

    # The kernel side could only log that the old object is corrupted, and not freed.
    cdef uint64_t move_debugged(self, uint64_t addr, uint64_t size, uint32_t gfp) except 0:
        cdef const kmem_cache* s = cache_of(self.slabs.m, <void*>addr)
        cdef uint64_t moved = self.take(size, gfp, -1)
        memcpy(<void*>moved, <void*>addr, get_orig_size(s, <void*>addr) if has_orig_size(s)
               else slab_ksize(s))
        try:
            free_debugged(self.slabs, addr)
        except AllocatorError:
            self.kfree(moved)
            raise
        return moved

    # An address as kfree() would take it.
    cdef uint64_t live(self, addr) except? 1:
        cdef uint64_t at = <uint64_t>as_int(addr, "addr")
        self.slabs.usable()
        if at != 0 and at != ZERO_SIZE_PTR:
            if self.slabs.take_back(NULL, at) == 0:
                self.slabs.hand_out(<void*>at)
        return at
