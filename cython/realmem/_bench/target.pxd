# Allocators under test: one block in, one block out, without Python.
from libc.stdint cimport int32_t, uint8_t, uint32_t, uint64_t

from realmem._kernel.page_alloc cimport alloc_pages_node
from realmem._kernel.page_free cimport free_pages
from realmem.types cimport machine, page

# LLFree's C interface (luhsra/llfree-c, include/llfree.h), declared here because its
# shared library is loaded when it is there and never needed to build.
cdef struct ll_optional:
    uint8_t present
    uint64_t value
cdef struct ll_request:
    uint8_t order
    uint8_t klass
    ll_optional local
cdef struct ll_result:
    uint64_t frame
    uint8_t klass
    uint8_t error
cdef struct ll_policy:
    int type
    uint8_t priority
cdef struct ll_class_conf:
    uint8_t klass
    uint64_t count
cdef struct ll_classing:
    ll_class_conf classes[8]
    uint64_t num_classes
    uint8_t default_class
    ll_policy (*policy)(uint8_t requested, uint8_t target, uint64_t free) noexcept nogil
cdef struct ll_meta_size:
    uint64_t llfree
    uint64_t local
    uint64_t trees
    uint64_t lower
cdef struct ll_meta:
    void* local
    void* trees
    void* lower

ctypedef ll_result (*ll_get_fn)(void*, ll_optional, ll_request) noexcept nogil
ctypedef ll_result (*ll_put_fn)(void*, uint64_t, ll_request) noexcept nogil
ctypedef ll_meta_size (*ll_meta_size_fn)(const ll_classing*, uint64_t) noexcept nogil
ctypedef ll_result (*ll_init_fn)(void*, uint64_t, uint8_t, ll_meta,
                                 const ll_classing*) noexcept nogil
ctypedef uint64_t (*ll_frames_fn)(const void*) noexcept nogil
ctypedef void (*ll_drain_fn)(void*) noexcept nogil

cdef enum:
    REALMEM = 0
    LLFREE = 1
    LL_HUGE_ORDER = 9           # from which on requests are of LLFree's second class

# An allocator: everything a loop needs, without Python.
cdef struct target:
    int32_t kind                # REALMEM or LLFREE
    int32_t nid                 # realmem: the node asked
    uint32_t gfp
    void* self                  # machine* or llfree_t*
    ll_get_fn get
    ll_put_fn put

cdef class Allocator:
    cdef target t
    cdef readonly str name
    cdef int ready(self) except -1  # raises when it can't be used any more
    cdef void drain(self) noexcept nogil

# Zeroed memory of whole cache lines, that is there when it is used; NULL when there is none.
cdef void* touched_block(uint64_t size) noexcept nogil

# Allocate; a block's name is its struct page or its frame number plus one, 0 for none.
cdef inline uint64_t take(target t, int kind, uint32_t order, int core) noexcept nogil:
    cdef ll_request request
    cdef ll_optional anywhere
    cdef ll_result got
    if kind == REALMEM:
        return <uint64_t>alloc_pages_node(<machine*>t.self, t.nid, t.gfp, order)
    anywhere.present = 0
    anywhere.value = 0
    request.order = <uint8_t>order
    request.klass = order >= LL_HUGE_ORDER
    request.local.present = 1
    request.local.value = core
    got = t.get(t.self, anywhere, request)
    return 0 if got.error else got.frame + 1


cdef inline void give(target t, int kind, uint64_t block, uint32_t order,
                      int core) noexcept nogil:
    cdef ll_request request
    if kind == REALMEM:
        free_pages(<machine*>t.self, <page*>block, order)
        return
    request.order = <uint8_t>order
    request.klass = order >= LL_HUGE_ORDER
    request.local.present = 1
    request.local.value = core
    t.put(t.self, block - 1, request)
