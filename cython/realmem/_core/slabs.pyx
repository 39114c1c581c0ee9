# cython: language_level=3
# Plain built-in methods: a call from Python costs half of what Cython's own kind does.
# cython: binding=False, embedsignature=True, embedsignature.format=clinic
# cython: cdivision=True, boundscheck=False, wraparound=False, initializedcheck=False
"""
The slab allocator of a machine: which objects Python holds, and which it may give back.

Python is told of a wrong free before anything changes.  So each object that a Python caller
holds has its bit in slab_state.given, set and cleared here with the GIL; an address without its
bit is judged slowly, since compiled code may have allocated it.  Compiled code, which frees by
kmem_cache_free() itself, is checked only where a cache's debugging flags ask for it.
"""
from libc.stdint cimport uint8_t, uint32_t, uint64_t

from realmem._core.pages cimport PageAllocator
from realmem._core.stack_depot cimport StackDepot
from realmem._kernel.kernel_caches cimport is_dedicated
from realmem._kernel.kmalloc cimport is_large_kmalloc
from realmem._kernel.page_free cimport FREE_BAD_PFN, free_check
from realmem._kernel.percpu cimport fork_generation
from realmem._kernel.sigsegv cimport handler
from realmem._kernel.slab_cache cimport OBJECT_FREE, OBJECT_INSIDE, OBJECT_NONE, find_object
from realmem._kernel.slab_types cimport (
    is_slab, kmem_cache, object_page, object_slab, slab, slab_address, slab_of,
)
from realmem._kernel.validate_slab cimport (
    NO_ROOM_TO_CHECK, SLAB_VALID, slab_finding, validate_slabs,
)
from realmem.compiler cimport peek_int, unlikely
from realmem.types cimport (
    GFP_DIRECT_RECLAIM, GFP_DMA32, GFP_HIGHMEM, PAGE_SHIFT, PAGE_SIZE, page,
)

from realmem.errors import AllocatorError, InvariantError, OutOfMemory
from realmem.layout import GFP

# By the numbers of _kernel/validate_slab.pxd.
MESSAGES = (
    "",
    "slab {address:#x}: its list's neighbours disagree",
    "slab {address:#x}: on a list of another cache or node",
    "slab {address:#x}: {found} of {expected} objects are in use",
    "slab {address:#x}: {found} objects on the free list where {expected} belong",
    "object {address:#x}: kept as free, but no object of this cache and node",
    "object {address:#x}: free in two places",
    "node {address}: nr_partial says {found}, there are {expected} such slabs",
    "node {address}: nr_slabs says {found}, there are {expected}",
    "node {address}: total_objects says {found}, there are {expected}",
    "frame {address:#x}: in a slab, and does not say so",
    "node {address}: {found} free objects at hand, {expected} objects in use",
    "node {address}: {found} pages counted, {expected} found",
)


cdef class SlabAllocator:
    """
    The slab allocator of one machine.

    :param pages: the machine's page allocator.
    :ivar caches: handles by name, aliases included, oldest first.
    """

    def __cinit__(self, PageAllocator pages not None):
        pages.alive()
        self.pages = pages
        self.m = pages.m
        self.state = slab_of(pages.m)
        self.caches = {}
        self.depot = StackDepot()

    cdef int usable(self) except -1:
        return self.pages.usable()

    cdef int may_alloc(self, uint32_t gfp) except -1:
        if unlikely(self.pages.m == NULL or self.pages.generation != fork_generation
                    or peek_int(&handler.nr_pending) != 0):
            self.pages.usable()
        if unlikely(gfp & (GFP_HIGHMEM | GFP_DMA32)):
            raise ValueError(f"no slab is of such memory: {GFP(gfp)!r}")
        if unlikely(self.pages.atomic_contexts and gfp & GFP_DIRECT_RECLAIM):
            self.pages.may_alloc(gfp)
        return 0

    cdef void hand_out(self, const void* object) noexcept:
        cdef uint64_t bit = (<uint64_t>object - self.m.direct_map) >> 3
        self.state.given[bit >> 3] |= <uint8_t>(1 << (bit & 7))

    cdef int take_back(self, kmem_cache* s, uint64_t addr) except -1:
        cdef uint64_t bit = (addr - self.m.direct_map) >> 3
        cdef uint8_t* byte
        cdef page* p
        if unlikely(bit >= self.m.max_pfn << (PAGE_SHIFT - 3) or addr & 7):
            return self.judge(s, addr)
        byte = self.state.given + (bit >> 3)
        if unlikely(not byte[0] >> (bit & 7) & 1):
            return self.judge(s, addr)
        p = object_page(self.m, <void*>addr)
        if unlikely((<slab*>p).cache != s if s != NULL
                    else not is_slab(p) and not is_large_kmalloc(p)):
            return self.judge(s, addr)
        byte[0] &= <uint8_t>~(1 << (bit & 7))
        return 0

    # An address that Python was not given, or of another cache.
    cdef int judge(self, kmem_cache* s, uint64_t addr) except -1:
        cdef uint64_t offset = addr - self.m.direct_map
        cdef kmem_cache* owner
        cdef int found
        if (offset >= self.m.max_pfn << PAGE_SHIFT
                or free_check(self.m, offset >> PAGE_SHIFT, 0) == FREE_BAD_PFN):
            raise AllocatorError(f"bad pointer: there is no memory of this machine at {addr:#x}")
        found = find_object(self.m, addr)
        if found == OBJECT_NONE:
            if (s == NULL and not addr & (PAGE_SIZE - 1)
                    and is_large_kmalloc(object_page(self.m, <void*>addr))):
                return 1            # compiled code allocated it
            if s != NULL:
                raise AllocatorError(f"bad pointer: {addr:#x} is no slab object")
            raise AllocatorError(
                f"bad pointer: {addr:#x} did not come from kmalloc(), or was freed before")
        owner = object_slab(self.m, <void*>addr).cache
        name = self.name_of(addr)
        if found == OBJECT_INSIDE:
            start = <uint64_t>slab_address(self.m, object_slab(self.m, <void*>addr))
            start += owner.red_left_pad
            inside = addr - start
            raise AllocatorError(
                f"bad pointer: {addr:#x} lies {inside % owner.size} bytes inside object "
                f"{start + inside // owner.size * owner.size:#x} of cache {name!r}")
        if found == OBJECT_FREE:
            raise AllocatorError(f"double free: object {addr:#x} of cache {name!r} is free")
        if s != NULL and owner != s:
            raise AllocatorError(f"wrong slab cache: object {addr:#x} is of cache {name!r}")
        if is_dedicated(owner):         # also one that was merged: nobody can tell whose it is
            raise AllocatorError(
                f"bad pointer: object {addr:#x} of cache {name!r} is realmem's own")
        return 1                    # compiled code allocated it

    def name_of(self, uint64_t addr):
        """Name the cache of the slab that holds an address."""
        return self.name_at(object_slab(self.m, <void*>addr).cache)

    cdef str name_at(self, kmem_cache* s):
        return next((name for name, cache in self.caches.items()
                     if cache.root == <uint64_t>s), "?")

    def report_to(self, reporter):
        """Have findings of debugged caches collected by ``reporter(name)``, which gives text."""
        self.reporter = reporter

    cdef str collect(self, str name):
        return "" if self.reporter is None else self.reporter(name)

    def check(self):
        """
        Recount every cache, slab and free object.

        :raises InvariantError: names the first that is wrong.
        :raises MemoryError: the host has no memory for it.
        """
        cdef slab_finding found
        self.pages.alive()
        self.pages.busy += 1
        with nogil:
            validate_slabs(self.m, &found)
        self.pages.busy -= 1
        if found.what == SLAB_VALID:
            return
        if found.what == NO_ROOM_TO_CHECK:
            raise MemoryError("no memory to check the slab allocator with")
        where = "kmalloc(): " if found.cache == NULL else f"cache {self.name_at(found.cache)}: "
        raise InvariantError(where + MESSAGES[found.what].format(
            address=found.address, expected=found.expected, found=found.found))

    def out_of_memory(self, str what, uint32_t gfp, int nid, unsigned int order):
        """Make the exception for a request that found no pages."""
        found = self.pages.out_of_memory(gfp, order, nid)
        return OutOfMemory(f"{what}: {found.message}", order=order, gfp=found.gfp,
                           node=found.node, report=found._report)
