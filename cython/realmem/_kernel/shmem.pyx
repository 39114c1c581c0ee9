# cython: language_level=3, cdivision=True, boundscheck=False, wraparound=False
# cython: initializedcheck=False, nonecheck=False, profile=False, linetrace=False
from libc.errno cimport ENOMEM
from libc.stdint cimport int64_t, uint64_t
from libc.string cimport memcpy

from realmem._kernel.address_space cimport (
    is_value, make_value, mapping_add_locked, mapping_create, mapping_enter_locked,
    mapping_leave_locked, mapping_put, mapping_swapped_locked, value_entry,
)
from realmem._kernel.host_calls cimport mutex_lock, mutex_unlock
from realmem._kernel.lru cimport lru_keep
from realmem._kernel.mm_types cimport FAULT_OK, FAULT_OOM, FAULT_SIGBUS, address_space, mmu
from realmem._kernel.page_alloc cimport alloc_pages_node
from realmem._kernel.page_free cimport get_page, put_page
from realmem._kernel.radix_tree cimport radix_load, radix_next, radix_replace
from realmem._kernel.swap cimport (
    swap_alloc, swap_cache_fill, swap_cache_get, swap_free, swap_read, swap_read_ahead, swap_write,
    swp_type,
)
from realmem.compiler cimport SEQ_CST, atomic64_add_return, load64
from realmem.types cimport (
    GFP_FAULT, GFP_ZERO, PAGE_SIZE, PG_dirty, PG_shmem, PG_swapbacked, PG_uptodate, list_add,
    list_del, list_empty, list_head, page, page_address, page_zone,
)

cdef extern from *:
    # page.counts of one that nobody maps, and that only its object refers to.
    const uint64_t OBJECT_S_ALONE "0xFFFFFFFF00000001ULL"

cdef enum:
    OBJECT_FLAGS = 1 << PG_swapbacked | 1 << PG_uptodate | 1 << PG_dirty | 1 << PG_shmem


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
                          int* rc_ret, bint* major_ref) noexcept nogil:
    cdef page* p = NULL
    mutex_lock(&object.lock)
    if index >= object.size:
        rc_ret[0] = FAULT_SIGBUS
    else:
        rc_ret[0] = FAULT_OK
        p = <page*>radix_load(object.root, index)
        if is_value(p):
            p = bring_back_locked(object, index, nid, rc_ret, major_ref) if make else NULL
        elif p == NULL and make:
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
    p = alloc_pages_node(u.m, nid, GFP_FAULT | GFP_ZERO, 0)
    if p != NULL and mapping_add_locked(object, index, p, OBJECT_FLAGS) != 0:
        put_page(u.m, p)
        p = NULL
    if p == NULL:
        if object.noreserve:
            atomic64_add_return(&u.committed, -1, SEQ_CST)
        return NULL
    object.charged += object.noreserve
    return p


# ---- swapped pages ----------------------------------------------------------

# The page that a value stands for takes its place.  What the swap cache has is copied: there a
# page is anonymous, and lies on lists as such.
# Mirrors: shmem_swapin_folio().
cdef page* bring_back_locked(address_space* object, uint64_t index, int nid, int* rc_ret,
                             bint* major_ref) noexcept nogil:
    cdef mmu* u = object.mmu
    cdef uint64_t entry = value_entry(radix_load(object.root, index))
    cdef page* cached
    cdef page* p = alloc_pages_node(u.m, nid, GFP_FAULT, 0)
    if p == NULL:
        rc_ret[0] = FAULT_OOM
        return NULL
    cached = swap_cache_get(u, entry)
    if cached != NULL:
        memcpy(<void*>page_address(u.m, p), <void*>page_address(u.m, cached), PAGE_SIZE)
        put_page(u.m, cached)
    else:
        major_ref[0] = True
        swap_read_ahead(u, entry, page_zone(u.m, p).nid)
        if swap_read(u, entry, p) != 0:
            put_page(u.m, p)
            rc_ret[0] = FAULT_SIGBUS
            return NULL
    radix_replace(object.root, index, p)
    mapping_enter_locked(object, index, p, OBJECT_FLAGS)
    mapping_swapped_locked(object, -1)
    swap_free(u, entry)
    return p


cdef bint shmem_swap_out(address_space* object, uint64_t index, page* p) noexcept nogil:
    cdef mmu* u = object.mmu
    cdef uint64_t entry = 0
    cdef bint gone = False
    mutex_lock(&object.lock)
    # New references come from the object, under its lock, or from an entry, of which none is left.
    if radix_load(object.root, index) == p and load64(&p.counts.word) == OBJECT_S_ALONE:
        entry = swap_alloc(u)
    if entry != 0 and swap_write(u, entry, p) == 0:
        radix_replace(object.root, index, make_value(entry))
        mapping_leave_locked(object, p)
        mapping_swapped_locked(object, 1)
        gone = True
    mutex_unlock(&object.lock)
    if gone:
        put_page(u.m, p)
    elif entry != 0:
        swap_free(u, entry)
    return gone


cdef bint shmem_in_memory(address_space* object, uint64_t index) noexcept nogil:
    cdef void* item
    cdef page* cached = NULL
    mutex_lock(&object.lock)
    item = radix_load(object.root, index)
    if is_value(item):
        cached = swap_cache_get(object.mmu, value_entry(item))
    mutex_unlock(&object.lock)
    if cached != NULL:
        put_page(object.mmu.m, cached)
    return cached != NULL if is_value(item) else item != NULL


cdef void shmem_will_need(address_space* object, uint64_t first, uint64_t last) noexcept nogil:
    cdef uint64_t index = first
    cdef void* item
    mutex_lock(&object.lock)
    item = radix_next(object.root, &index) if object.nr_swapped != 0 else NULL
    while item != NULL and index <= last:
        if is_value(item):
            swap_cache_fill(object.mmu, value_entry(item), -1)
        index += 1
        item = radix_next(object.root, &index)
    mutex_unlock(&object.lock)


cdef int64_t shmem_swapped(address_space* object, uint64_t first, uint64_t last) noexcept nogil:
    cdef uint64_t index = first
    cdef int64_t n = 0
    cdef void* item
    mutex_lock(&object.lock)
    item = radix_next(object.root, &index) if object.nr_swapped != 0 else NULL
    while item != NULL and index <= last:
        n += is_value(item)
        index += 1
        item = radix_next(object.root, &index)
    mutex_unlock(&object.lock)
    return n


cdef int shmem_unuse(mmu* u, int type) noexcept nogil:
    cdef address_space* object
    cdef list_head* entry
    cdef int64_t left = 0
    cdef int rc = FAULT_OK
    mutex_lock(&u.swap_lock)
    entry = u.shmem_swaplist.next
    while entry != &u.shmem_swaplist:
        left += 1
        entry = entry.next
    mutex_unlock(&u.swap_lock)
    # The oldest moves to the front; what is swapped meanwhile is for another turn.
    while left > 0 and rc == FAULT_OK:
        left -= 1
        mutex_lock(&u.swap_lock)
        object = NULL
        if not list_empty(&u.shmem_swaplist):
            object = <address_space*>u.shmem_swaplist.prev     # its first field
            list_del(&object.swaplist)
            list_add(&object.swaplist, &u.shmem_swaplist)
            if not lru_keep(object):
                object = NULL
        mutex_unlock(&u.swap_lock)
        if object != NULL:
            rc = unuse_object(object, type)
            mapping_put(object)
    return rc


cdef int unuse_object(address_space* object, int type) noexcept nogil:
    cdef uint64_t index = 0
    cdef void* item
    cdef bint major = False
    cdef int rc = FAULT_OK
    mutex_lock(&object.lock)
    item = radix_next(object.root, &index)
    while item != NULL and rc == FAULT_OK:
        if is_value(item) and swp_type(value_entry(item)) == type:
            bring_back_locked(object, index, -1, &rc, &major)
        index += 1
        item = radix_next(object.root, &index)
    mutex_unlock(&object.lock)
    return rc
