# cython: language_level=3
# Plain built-in methods: a call from Python costs half of what Cython's own kind does.
# cython: binding=False, embedsignature=True, embedsignature.format=clinic
# cython: cdivision=True, boundscheck=False, wraparound=False, initializedcheck=False
"""Slab caches: made, used, looked at, destroyed from Python."""
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t

from realmem._core.arguments cimport as_gfp, as_int
from realmem._core.checked_slabs cimport alloc_checked, caller, free_checked
from realmem._core.slabs cimport SlabAllocator
from realmem._kernel.fault_inject cimport should_fail
from realmem._kernel.percpu cimport fork_generation
from realmem._kernel.sigsegv cimport handler
from realmem._kernel.slab cimport (
    kmem_cache_alloc, kmem_cache_alloc_bulk, kmem_cache_alloc_node, kmem_cache_free,
    kmem_cache_free_bulk, slab_alloc_slow,
)
from realmem._kernel.slab_cache cimport (
    add_cache, cache_stat, free_cache, new_cache, remove_cache, shrink_cache, stat_cache,
    stat_cache_node,
)
from realmem._kernel.slab_debug cimport list_remaining, validate_cache
from realmem._kernel.slab_log cimport slab_log_init
from realmem._kernel.slab_pages cimport discard_raw_slab, new_raw_slab, publish_slab
from realmem._kernel.slab_types cimport (
    BATCH_SLOTS, DEPOT_SLOTS, MAGAZINE_SLOTS, OBJECT_POISON, SLAB_CACHE_DMA, SLAB_CACHE_DMA32,
    SLAB_DEBUG_FLAGS, SLAB_POISON, SLAB_RECLAIM_ACCOUNT, SLAB_TYPESAFE_BY_RCU, kmem_cache, slab,
    slab_address,
)
from realmem.compiler cimport peek64, peek_int, unlikely
from realmem.types cimport (
    GFP_DMA, GFP_DMA32, GFP_KERNEL, GFP_NOFAIL, GFP_RECLAIMABLE, GFP_ZERO, INJECT_SLAB,
    MACHINE_INJECT_SLAB, PAGE_SHIFT, machine,
)

from realmem.errors import AllocatorError, HostError
from realmem.layout import GFP, SLAB

cdef object KERNEL = GFP.KERNEL


def create_cache(SlabAllocator allocator not None, str name, flags, geometry, ctor=None,
                 int slot=-1, int kind=-1, int index=-1):
    """
    Make a cache.

    :param allocator: the machine's.
    :param name: not taken yet.
    :param flags: SLAB flags.
    :param geometry: a realmem.slabcalc.Geometry.
    :param ctor: None, a callable that is given an object's memoryview, or the address of a
        C function ``void (*)(void *)``.
    :param slot: its magazine's, or -1 for any.
    :param kind: of a generic cache, its type's index; -1 for others.
    :param index: ... its kmalloc_index().
    :return: its handle.
    :raises HostError: the host has no memory for the cache's structures.
    """
    cdef KmemCache cache = KmemCache.__new__(KmemCache)
    cdef kmem_cache* s
    cdef uint64_t most
    cdef uint32_t bits = flags
    cdef uint64_t c_ctor = 0 if ctor is None or callable(ctor) else ctor
    allocator.may_alloc(GFP_KERNEL)
    s = NULL
    if not bits & SLAB_DEBUG_FLAGS or slab_log_init(allocator.state) == 0:
        s = new_cache(allocator.m)
    if s == NULL:
        raise HostError(12, f"no memory for cache {name!r}; raise the address-space limit")
    if bits & SLAB_POISON and ctor is None and not bits & SLAB_TYPESAFE_BY_RCU:
        bits |= OBJECT_POISON
    s.flags = bits
    s.object_size = geometry.object_size
    s.size = geometry.size
    s.offset = geometry.offset
    s.inuse = geometry.inuse
    s.align = geometry.align
    s.red_left_pad = geometry.red_left_pad
    s.order = geometry.order
    s.min_order = geometry.min_order
    s.min_partial = geometry.min_partial
    s.gfp = ((GFP_DMA if bits & SLAB_CACHE_DMA else 0)
             | (GFP_DMA32 if bits & SLAB_CACHE_DMA32 else 0)
             | (GFP_RECLAIMABLE if bits & SLAB_RECLAIM_ACCOUNT else 0))
    # What threads and depots keep to themselves is bounded by bytes too.
    most = (allocator.m.max_pfn << PAGE_SHIFT) / s.size
    s.capacity = <uint32_t>max(2, min(<uint64_t>MAGAZINE_SLOTS, most >> 6))
    s.batch = min(BATCH_SLOTS, s.capacity >> 1)
    s.depot_max = <uint32_t>min(<uint64_t>DEPOT_SLOTS, most >> 6)
    s.refcount = 1
    s.python_ctor = ctor is not None and c_ctor == 0
    s.ctor = <void (*)(void*) noexcept nogil>c_ctor
    add_cache(s, slot)
    if kind >= 0:
        allocator.state.kmalloc[kind][index] = s
    cache.allocator = allocator
    cache.s = s
    cache.name = name
    cache.flags = flags
    cache.object_size = geometry.object_size
    cache.python_ctor = ctor if s.python_ctor else None
    cache.c_ctor = c_ctor
    allocator.caches[name] = cache
    return cache


def alias_cache(SlabAllocator allocator not None, str name, KmemCache root not None, flags,
                geometry):
    """
    Give a cache one more name, and its objects room for what this name asks for.

    Compare mm/slub.c:__kmem_cache_alias().
    """
    cdef KmemCache cache = KmemCache.__new__(KmemCache)
    allocator.may_alloc(GFP_KERNEL)
    root.usable()
    root.s.refcount += 1
    root.s.object_size = max(root.s.object_size, <uint32_t>geometry.object_size)
    root.s.inuse = max(root.s.inuse, <uint32_t>geometry.inuse)
    cache.allocator = allocator
    cache.s = root.s
    cache.name = name
    cache.flags = flags
    cache.object_size = geometry.object_size
    allocator.caches[name] = cache
    return cache


cdef class KmemCache:
    """
    A cache of objects of one size.

    :ivar name: unique in its machine.
    :ivar object_size: bytes of an object, as asked for.
    :ivar flags: SLAB flags.
    """

    def __init__(self):
        raise TypeError("a KmemCache comes from a machine: kmem_cache_create()")

    cdef int usable(self) except -1:
        self.allocator.usable()
        if unlikely(self.s == NULL):
            raise ValueError(f"cache {self.name!r} is destroyed")
        return 0

    cdef bint in_reach(self) noexcept:
        cdef bint open_here = (self.allocator.pages.m != NULL
                               and self.allocator.pages.generation == fork_generation)
        return open_here and self.s != NULL

    # ---- objects ----

    def alloc(self, gfp=KERNEL, node=None):
        """
        Allocate an object.

        Compare mm/slub.c:kmem_cache_alloc(), kmem_cache_alloc_node().

        :param gfp: what the caller allows; with GFP.ZERO the object is cleared.
        :param node: node id to take it from; None means the calling CPU's node.
        :return: kernel logical address.
        :raises OutOfMemory: there is no free object and no page for a slab.
        :raises ValueError: flags that slabs refuse, or an unknown node.
        :raises AtomicContextError: gfp may sleep, and the thread is in atomic_context().
        """
        cdef uint32_t flags = GFP_KERNEL if gfp is KERNEL else as_gfp(gfp)
        cdef int nid = -1 if node is None else self.allocator.pages.as_nid(node)
        cdef void* object
        if unlikely(self.s == NULL):
            self.usable()
        self.allocator.may_alloc(flags)
        if unlikely(flags & GFP_ZERO):
            self.may_clear()
        if unlikely(self.s.flags & SLAB_DEBUG_FLAGS or self.s.python_ctor):
            self.may_fail(flags, nid)
            object = self.checked_or_constructed(flags, nid)
        elif nid < 0:
            object = kmem_cache_alloc(self.s, flags)
        else:
            object = kmem_cache_alloc_node(self.s, flags, nid)
        if unlikely(object == NULL):
            raise self.allocator.out_of_memory(
                f"cache {self.name}", flags, nid, self.s.min_order)
        self.allocator.hand_out(object)
        return <uint64_t>object

    cdef int may_clear(self) except -1:
        if self.s.ctor != NULL or self.s.python_ctor:
            raise ValueError(
                f"cache {self.name!r} has a constructor: its objects can't be cleared")
        return 0

    # An object of a debugged cache, or of one whose slabs the kernel side can't make: Python
    # constructs them.
    cdef void* checked_or_constructed(self, uint32_t gfp, int nid) except NULL:
        cdef void* object = self.take(gfp, nid)
        while object == NULL and self.s.python_ctor:
            self.make_slab(gfp, nid)
            object = self.take(gfp, nid)
        if object == NULL:
            raise self.allocator.out_of_memory(f"cache {self.name}", gfp, nid, self.s.min_order)
        return object

    cdef void* take(self, uint32_t gfp, int nid) except? NULL:
        cdef uint32_t handle
        if not self.s.flags & SLAB_DEBUG_FLAGS:
            return slab_alloc_slow(self.s, gfp, nid)
        handle = caller(self.allocator, self.s)
        self.usable()               # again: Python code ran
        return alloc_checked(self.allocator, self.s, gfp, nid, self.s.object_size, handle)

    # ... which machine.inject() can make fail as any other's.
    cdef int may_fail(self, uint32_t gfp, int nid) except -1:
        cdef machine* m = self.allocator.m
        if (m.options & MACHINE_INJECT_SLAB and not gfp & GFP_NOFAIL
                and should_fail(&m.faults[INJECT_SLAB])):
            raise self.allocator.out_of_memory(f"cache {self.name}", gfp, nid, self.s.min_order)
        return 0

    # A slab whose objects a Python callable constructs.
    cdef int make_slab(self, uint32_t gfp, int nid) except -1:
        cdef kmem_cache* s = self.s
        cdef machine* m = self.allocator.m
        cdef slab* sl = new_raw_slab(s, gfp, nid)
        cdef uint64_t at
        cdef int objects
        if sl == NULL:
            raise self.allocator.out_of_memory(f"cache {self.name}", gfp, nid, s.min_order)
        self.constructing += 1
        try:
            at = <uint64_t>slab_address(m, sl) + s.red_left_pad
            objects = sl.objects
            for _ in range(objects):
                self.python_ctor(self.allocator.pages.view(at, s.object_size))
                self.usable()       # it may have closed the machine, or returned in a fork
                at += s.size
        except BaseException:
            if self.in_reach():
                discard_raw_slab(m, sl)
            raise
        finally:
            self.constructing -= 1
        publish_slab(s, sl, 0)
        return 0

    def free(self, addr):
        """
        Give an object back.

        Compare mm/slub.c:kmem_cache_free().

        :raises AllocatorError: not an object of this cache, or free already; nothing is changed.
        """
        cdef uint64_t at = <uint64_t>as_int(addr, "addr")
        if unlikely(self.s == NULL or self.allocator.pages.m == NULL
                    or self.allocator.pages.generation != fork_generation
                    or peek_int(&handler.nr_pending) != 0):
            self.usable()
        if unlikely(self.s.flags & SLAB_DEBUG_FLAGS):
            self.free_debugged(at)
            return
        self.allocator.take_back(self.s, at)
        kmem_cache_free(self.s, <void*>at)

    cdef int free_debugged(self, uint64_t addr) except -1:
        cdef uint32_t handle = caller(self.allocator, self.s)
        self.usable()               # again: Python code ran
        return free_checked(self.allocator, self.s, addr, handle)

    def alloc_bulk(self, n, gfp=KERNEL):
        """
        Allocate n objects at once, or none.

        Compare mm/slub.c:kmem_cache_alloc_bulk().  Errors as for alloc().

        :return: their addresses, a NumPy uint64 array.
        """
        import numpy

        cdef int64_t wanted = as_int(n, "n")
        cdef uint32_t flags = GFP_KERNEL if gfp is KERNEL else as_gfp(gfp)
        cdef uint64_t[::1] addrs
        cdef kmem_cache* s
        cdef Py_ssize_t i
        cdef uint64_t bit
        cdef uint64_t base
        cdef uint8_t* given
        self.usable()
        self.allocator.may_alloc(flags)
        s = self.s
        if wanted < 0:
            raise ValueError(f"n is negative: {n}")
        if <uint64_t>wanted > (self.allocator.m.max_pfn << PAGE_SHIFT) / s.size:
            raise self.allocator.out_of_memory(f"cache {self.name}", flags, -1, s.min_order)
        array = numpy.empty(wanted, dtype=numpy.uint64)
        if wanted == 0:
            return array
        addrs = array
        self.usable()               # again: Python code ran
        if flags & GFP_ZERO:
            self.may_clear()
        if s.python_ctor or s.flags & SLAB_DEBUG_FLAGS:
            self.alloc_each(addrs, flags)
        elif kmem_cache_alloc_bulk(s, flags, wanted, <void**>&addrs[0]) == 0:
            raise self.allocator.out_of_memory(f"cache {self.name}", flags, -1, s.min_order)
        base = self.allocator.m.direct_map
        given = self.allocator.state.given
        for i in range(wanted):
            bit = (addrs[i] - base) >> 3
            given[bit >> 3] |= <uint8_t>(1 << (bit & 7))
        return array

    def alloc_each(self, uint64_t[::1] addrs, uint32_t gfp):
        """Fill an array with objects, one by one: constructors may have to run in between."""
        cdef Py_ssize_t i = 0
        self.may_fail(gfp, -1)
        try:
            while i < addrs.shape[0]:
                addrs[i] = <uint64_t>self.checked_or_constructed(gfp, -1)
                i += 1
        except BaseException:
            if self.in_reach() and i:
                kmem_cache_free_bulk(self.s, i, <void**>&addrs[0])
            raise

    def free_bulk(self, addrs):
        """
        Give objects back at once.

        :param addrs: any sequence of addresses, or an array of them.
        :raises AllocatorError: one of them is not a live object of this cache, or stands there
            twice; then none is freed.
        """
        import numpy

        cdef const uint64_t[::1] array
        cdef kmem_cache* s
        cdef Py_ssize_t i = 0
        cdef Py_ssize_t n
        cdef int judged = 0
        self.usable()
        if not (isinstance(addrs, numpy.ndarray) and addrs.dtype == numpy.uint64):
            addrs = numpy.array([<uint64_t>as_int(one, "addr") for one in addrs],
                                dtype=numpy.uint64)
        found = numpy.ascontiguousarray(addrs)
        if found.ndim != 1:
            raise ValueError("addrs must have one dimension")
        if found.size == 0:
            return
        array = found
        n = array.shape[0]
        self.usable()               # again: Python code ran
        s = self.s
        if s.flags & SLAB_DEBUG_FLAGS:
            self.free_each(array)
            return
        try:
            while i < n:
                judged |= self.allocator.take_back(s, array[i])
                i += 1
            # The second time in a row that Python held no such object tells nothing.
            if judged and numpy.unique(found).size != n:
                raise AllocatorError("double free: an object stands twice in the sequence")
        except BaseException:
            while i > 0:
                i -= 1
                self.allocator.hand_out(<void*>array[i])
            raise
        kmem_cache_free_bulk(s, n, <void**>&array[0])

    # Of a debugged cache: all that can be freed are, and what was wrong is raised together.
    cdef int free_each(self, const uint64_t[::1] addrs) except -1:
        cdef Py_ssize_t i
        wrong = []
        for i in range(addrs.shape[0]):
            try:
                self.free_debugged(addrs[i])
            except AllocatorError as error:
                wrong.append(str(error))
        if wrong:
            raise AllocatorError("\n".join(wrong))
        return 0

    # ---- the cache ----

    def validate(self):
        """
        Check every object of a cache with debugging flags, in use or free, and repair what is
        found wrong.

        Compare mm/slub.c:validate_slab_cache(): ``echo 1 > /sys/kernel/slab/NAME/validate``.

        :return: the number of errors: each finding is one, and so is each repair.
        :raises ValueError: the cache has no debugging flag.
        """
        self.usable()
        if not self.s.flags & SLAB_DEBUG_FLAGS:
            raise ValueError(f"cache {self.name!r} has no debugging flags")
        errors = validate_cache(self.s)
        self.allocator.collect(None)
        return errors

    @property
    def errors(self):
        """How many errors its checks have found so far, repairs included."""
        self.usable()
        return peek64(&self.s.nr_errors)

    def shrink(self):
        """
        Call in the objects that threads keep at hand, and give every empty slab back.

        Compare mm/slab_common.c:kmem_cache_shrink().
        """
        self.usable()
        self.allocator.may_alloc(GFP_KERNEL)    # it waits for the threads
        shrink_cache(self.s)

    def destroy(self):
        """
        Forget the cache.

        Compare mm/slab_common.c:kmem_cache_destroy(): of a merged cache only the name goes, as
        long as others use it.

        :raises AllocatorError: objects are still out; the cache goes on working.
        """
        cdef kmem_cache* s
        cdef cache_stat found
        self.usable()
        self.allocator.may_alloc(GFP_KERNEL)
        s = self.s
        if self.flags & SLAB.KMALLOC:
            raise AllocatorError(f"cache {self.name!r} is kmalloc()'s: it can't be destroyed")
        if self.kept:
            raise AllocatorError(f"cache {self.name!r} is realmem's own: it can't be destroyed")
        if self.constructing:
            raise AllocatorError(f"cache {self.name!r} is in use: its constructor runs")
        if s.refcount == 1:
            if s.flags & SLAB_DEBUG_FLAGS:
                shrink_cache(s)
                self.allocator.collect(None)    # while its name is known
                self.usable()       # again: Python code ran
            if remove_cache(s) != 0:
                stat_cache(s, &found)
                text = (f"kmem_cache_destroy {self.name}: slab cache still has "
                        f"{found.active_objs} objects")
                if s.flags & SLAB_DEBUG_FLAGS:
                    list_remaining(s)
                    text = f"{text}\n{self.allocator.collect(self.name)}"
                raise AllocatorError(text)
            free_cache(s)
        else:
            s.refcount -= 1
        self.s = NULL
        del self.allocator.caches[self.name]

    # ---- looking ----

    @property
    def size(self):
        """Bytes from one object to the next."""
        self.usable()
        return self.s.size

    @property
    def align(self):
        """What each object's address is a multiple of."""
        self.usable()
        return self.s.align

    @property
    def order(self):
        """Order of a slab."""
        self.usable()
        return self.s.order

    @property
    def objs_per_slab(self):
        """Objects in a slab of that order."""
        self.usable()
        return (<uint64_t>4096 << self.s.order) / self.s.size

    @property
    def min_partial(self):
        """Slabs with free objects below which a node keeps an empty one; can be set."""
        self.usable()
        return self.s.min_partial

    @min_partial.setter
    def min_partial(self, wanted):
        cdef int64_t value = as_int(wanted, "min_partial")
        self.usable()
        if not 0 <= value < 1 << 31:
            raise ValueError(f"min_partial {wanted} is not within 0 and {(1 << 31) - 1}")
        self.s.min_partial = <uint32_t>value

    @property
    def capacity(self):
        """Objects that a thread keeps at hand, at most; Linux's sheaf_capacity."""
        self.usable()
        return self.s.capacity

    @property
    def constructor(self):
        """What is run for each new object: a callable, the address of a C function, or None."""
        self.usable()
        return self.python_ctor if self.s.python_ctor else self.c_ctor or None

    @property
    def mergeable(self):
        """Whether it may serve other names: it has no constructor and is not kmalloc()'s."""
        self.usable()
        return not (self.s.ctor != NULL or self.s.python_ctor or self.flags & SLAB.KMALLOC)

    @property
    def root(self):
        """What tells merged caches from others: the same for all names of one."""
        self.usable()
        return <uint64_t>self.s

    def stat(self, nid=None):
        """
        Count objects and slabs.

        :param nid: of one node; None means of all.
        :return: dict of active_objs, num_objs, num_slabs, nr_partial (slabs that have free
            objects), partial_objs (objects in use in those).
        """
        cdef cache_stat found
        self.usable()
        if nid is None:
            stat_cache(self.s, &found)
        else:
            stat_cache_node(self.s, max(0, self.allocator.pages.as_nid(nid)), &found)
        return {"active_objs": found.active_objs, "num_objs": found.num_objs,
                "num_slabs": found.num_slabs, "nr_partial": found.nr_partial,
                "partial_objs": found.partial_objs}

    @property
    def active_objs(self):
        """Objects in use, those that threads keep at hand included."""
        return self.stat()["active_objs"]

    @property
    def num_objs(self):
        """Objects in all slabs."""
        return self.stat()["num_objs"]

    @property
    def active_slabs(self):
        """Slabs; Linux counts all of them as active."""
        return self.stat()["num_slabs"]

    @property
    def num_slabs(self):
        """Slabs."""
        return self.stat()["num_slabs"]

    def __repr__(self):
        return f"<realmem.KmemCache {self.name!r} of {self.object_size} bytes>"
