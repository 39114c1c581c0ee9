# cython: language_level=3, cdivision=True, boundscheck=False, wraparound=False
# cython: initializedcheck=False, nonecheck=False, profile=False, linetrace=False
from libc.errno cimport ENOMEM
from libc.stdint cimport int64_t, uint64_t

from realmem._kernel.address_space cimport mapping_add_locked, mapping_create
from realmem._kernel.host_calls cimport mutex_lock, mutex_unlock
from realmem._kernel.mm_types cimport FAULT_OK, FAULT_OOM, FAULT_SIGBUS, address_space, mmu
from realmem._kernel.page_alloc cimport alloc_pages_node
from realmem._kernel.page_free cimport get_page, put_page
from realmem._kernel.radix_tree cimport radix_load
from realmem.compiler cimport SEQ_CST, atomic64_add_return
from realmem.types cimport (
    GFP_HIGHUSER_MOVABLE, GFP_ZERO, PG_dirty, PG_swapbacked, PG_uptodate, page,
)

cdef enum: OBJECT_FLAGS = 1 << PG_swapbacked | 1 << PG_uptodate | 1 << PG_dirty


# ---- promises ---------------------------------------------------------------

cdef int vm_enough_memory(mmu* u, int64_t pages, bint may_reserve,
                          int64_t total_vm) noexcept nogil:
    cdef int64_t now = atomic64_add_return(&u.committed, pages, SEQ_CST)
    cdef int64_t allowed
    if pages <= 0 or u.overcommit == 1:
        return 0
    if u.overcommit == 0:
        if pages <= u.total_pages:
            return 0
    else:
        allowed = u.commit_limit
        if not may_reserve:
            allowed -= u.admin_reserve
        allowed -= min(total_vm / 32, u.user_reserve)
        if now < allowed:
            return 0
    atomic64_add_return(&u.committed, -pages, SEQ_CST)
    return -ENOMEM


# ---- objects ----------------------------------------------------------------

cdef address_space* shmem_create(mmu* u, uint64_t pages, bint noreserve, bint may_reserve,
                                 int64_t total_vm) noexcept nogil:
    cdef address_space* object
    if not noreserve and vm_enough_memory(u, <int64_t>pages, may_reserve, total_vm) != 0:
        return NULL
    object = mapping_create(u)
    if object == NULL:
        if not noreserve:
            atomic64_add_return(&u.committed, -<int64_t>pages, SEQ_CST)
        return NULL
    object.size = pages
    object.noreserve = noreserve
    object.charged = 0 if noreserve else pages
    return object


cdef page* shmem_get_page(address_space* object, uint64_t index, int nid, bint make,
                          int* rc_ret) noexcept nogil:
    cdef page* p = NULL
    mutex_lock(&object.lock)
    if index >= object.size:
        rc_ret[0] = FAULT_SIGBUS
    else:
        rc_ret[0] = FAULT_OK
        p = <page*>radix_load(object.root, index)
        if p == NULL and make:
            p = add_page(object, index, nid)
            rc_ret[0] = FAULT_OK if p != NULL else FAULT_OOM
        if p != NULL:
            get_page(p)
    mutex_unlock(&object.lock)
    return p


cdef page* add_page(address_space* object, uint64_t index, int nid) noexcept nogil:
    cdef mmu* u = object.mmu
    cdef page* p
    if object.noreserve and vm_enough_memory(u, 1, False, 0) != 0:
        return NULL
    p = alloc_pages_node(u.m, nid, GFP_HIGHUSER_MOVABLE | GFP_ZERO, 0)
    if p != NULL and mapping_add_locked(object, index, p, OBJECT_FLAGS) != 0:
        put_page(u.m, p)
        p = NULL
    if p == NULL:
        if object.noreserve:
            atomic64_add_return(&u.committed, -1, SEQ_CST)
        return NULL
    object.charged += object.noreserve
    return p
