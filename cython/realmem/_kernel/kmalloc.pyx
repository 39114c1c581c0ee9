# cython: language_level=3, cdivision=True, boundscheck=False, wraparound=False
# cython: initializedcheck=False, nonecheck=False, profile=False, linetrace=False
# kmalloc() and kfree().  Compare mm/slub.c (Linux 6.18): __do_kmalloc_node(), kfree().
#
# The caches that serve plain requests have the same magazine slots in every machine, by
# kmalloc_index(), so that the fast path finds the magazine without looking at the cache; that
# of kfree() finds it in the object's struct page.
from libc.stdint cimport UINT64_MAX, uint32_t, uint64_t
from libc.string cimport memcpy, memset

from realmem._kernel.page_alloc cimport alloc_pages_node
from realmem._kernel.page_free cimport free_pages
from realmem._kernel.percpu cimport attach_areas, current_area
from realmem._kernel.slab cimport (
    kmem_cache_alloc_debug, kmem_cache_alloc_node, kmem_cache_free,
)
from realmem._kernel.slab_check cimport get_orig_size, has_orig_size, resize_object, set_orig_size
from realmem._kernel.slab_debug cimport slab_user
from realmem._kernel.slab_types cimport (
    KMALLOC_MAX_CACHE_SIZE, MAGAZINE_BYTES, SLAB_DEBUG_FLAGS, SLAB_POISON, SLAB_RED_ZONE,
    SLAB_STORE_USER, SLAB_TYPESAFE_BY_RCU, area_magazine, is_slab, kmem_cache, last_slot,
    magazine, object_page, slab, slab_of,
)
from realmem.compiler cimport (
    RELAXED, atomic64_add_return, barrier, fls, likely, poke_int, return_address,
)
from realmem.types cimport (
    AREA_MAGAZINES, GFP_ACCOUNT, GFP_COMP, GFP_DMA, GFP_RECLAIMABLE, GFP_ZERO, PAGE_SHIFT,
    PAGE_SIZE, PG_head, cpu_area, machine, page, page_address, page_zone,
)

cdef enum:
    KMALLOC_NOT_NORMAL = GFP_DMA | GFP_RECLAIMABLE | GFP_ACCOUNT
    LARGE_KMALLOC = 0x4B4C41524745      # page.private of what no cache served

# From an area back to the magazine for a size, by (size + 7) >> 3.
cdef uint32_t magazine_back[1025]

cdef void* (*alloc_slowly)(machine* m, uint64_t size, uint32_t gfp, int nid) noexcept nogil
cdef void (*free_slowly)(machine* m, const void* object) noexcept nogil


cdef void* kmalloc(machine* m, uint64_t size, uint32_t gfp) noexcept nogil:
    cdef cpu_area* area = current_area()
    cdef magazine* mag
    cdef uint64_t top
    cdef void* object
    poke_int(&area.busy, 1)
    barrier()
    if likely(area.fast == m.objects_fast and size <= KMALLOC_MAX_CACHE_SIZE
              and not gfp & (KMALLOC_NOT_NORMAL | GFP_ZERO)):
        mag = area_magazine(area, magazine_back[(size + 7) >> 3])
        top = mag.top
        object = last_slot(mag, top)[0]
        if likely(object != NULL):
            mag.top = top - sizeof(void*)
            barrier()
            poke_int(&area.busy, 0)
            return object
    poke_int(&area.busy, 0)
    return alloc_slowly(m, size, gfp, -1)


cdef void kfree(machine* m, const void* object) noexcept nogil:
    cdef cpu_area* area = current_area()
    cdef magazine* mag
    cdef uint64_t back
    cdef uint64_t top
    poke_int(&area.busy, 1)
    barrier()
    if likely(area.fast == m.objects_fast and <uint64_t>object > ZERO_SIZE_PTR):
        back = object_page(m, object).slab_word
        if likely(back != 0):
            mag = area_magazine(area, back)
            top = mag.top
            if likely(top < mag.end):
                last_slot(mag, top)[1] = <void*>object
                mag.top = top + sizeof(void*)
                barrier()
                poke_int(&area.busy, 0)
                return
    poke_int(&area.busy, 0)
    free_slowly(m, object)


cdef void* kmalloc_node(machine* m, uint64_t size, uint32_t gfp, int nid) noexcept nogil:
    return kmalloc(m, size, gfp) if nid < 0 else alloc_slowly(m, size, gfp, nid)


cdef void* kmalloc_array(machine* m, uint64_t n, uint64_t size, uint32_t gfp) noexcept nogil:
    if size != 0 and n > UINT64_MAX / size:
        return NULL
    return kmalloc(m, n * size, gfp)


cdef void* kcalloc(machine* m, uint64_t n, uint64_t size, uint32_t gfp) noexcept nogil:
    return kmalloc_array(m, n, size, gfp | GFP_ZERO)


# ---- slow paths -------------------------------------------------------------

cdef void* kmalloc_slow(machine* m, uint64_t size, uint32_t gfp, int nid) noexcept nogil:
    cdef kmem_cache* s
    if size == 0:
        return <void*>ZERO_SIZE_PTR
    s = kmalloc_slab(m, size, gfp)
    if s == NULL:
        return kmalloc_large(m, size, gfp, nid)
    if s.flags & SLAB_DEBUG_FLAGS:
        return kmalloc_debugged(s, size, gfp, nid)
    return kmem_cache_alloc_node(s, gfp, nid)


cdef void* kmalloc_debugged(kmem_cache* s, uint64_t size, uint32_t gfp, int nid) noexcept nogil:
    cdef slab_user who
    who.addr = return_address()
    who.handle = 0
    who.refused = 0
    return kmem_cache_alloc_debug(s, gfp, nid, size, &who)


cdef void kfree_slow(machine* m, const void* object) noexcept nogil:
    cdef page* p
    cdef unsigned int order
    if <uint64_t>object <= ZERO_SIZE_PTR:
        return
    p = object_page(m, object)
    if likely(is_slab(p)):
        kmem_cache_free((<slab*>p).cache, <void*>object)
    elif is_large_kmalloc(p):
        order = p.kind.h.order
        p.private = 0
        atomic64_add_return(&slab_of(m).large_pages[page_zone(m, p).nid],
                            -(<long long>1 << order), RELAXED)
        free_pages(m, p, order)


# Compare ___kmalloc_large_node().
cdef void* kmalloc_large(machine* m, uint64_t size, uint32_t gfp, int nid) noexcept nogil:
    cdef unsigned int order
    cdef page* p
    if size > KMALLOC_MAX_SIZE:
        return NULL
    order = fls((size - 1) >> PAGE_SHIFT) + 1
    p = alloc_pages_node(m, nid, gfp | GFP_COMP, order)
    if p == NULL:
        return NULL
    p.private = LARGE_KMALLOC
    atomic64_add_return(&slab_of(m).large_pages[page_zone(m, p).nid],
                        <long long>1 << order, RELAXED)
    return <void*>page_address(m, p)


cdef bint is_large_kmalloc(const page* p) noexcept nogil:
    return p.flags >> PG_head & 1 and p.private == LARGE_KMALLOC


# Compare kmalloc_slab(), kmalloc_type().
cdef kmem_cache* kmalloc_slab(const machine* m, uint64_t size, uint32_t gfp) noexcept nogil:
    cdef int kind = 0
    if size > KMALLOC_MAX_CACHE_SIZE:
        return NULL
    if gfp & KMALLOC_NOT_NORMAL:
        kind = 1 if gfp & GFP_DMA else 2 if gfp & GFP_RECLAIMABLE else 3
    return slab_of(m).kmalloc[kind][kmalloc_index(size)]


# Compare include/linux/slab.h:__kmalloc_index().
cdef int kmalloc_index(uint64_t size) noexcept nogil:
    if size <= 8:
        return 3 if size else 0
    if 64 < size <= 96:
        return 1
    if 128 < size <= 192:
        return 2
    return <int>fls(size - 1) + 1


# ---- sizes ------------------------------------------------------------------

# Compare __ksize().  All of it may be used from now on: the zone behind what was asked for goes.
cdef uint64_t ksize(const machine* m, const void* object) noexcept nogil:
    cdef const page* p
    cdef const kmem_cache* s
    if <uint64_t>object <= ZERO_SIZE_PTR:
        return 0
    p = object_page(m, object)
    if not is_slab(p):
        return <uint64_t>PAGE_SIZE << p.kind.h.order
    s = (<const slab*>p).cache
    set_orig_size(s, <void*>object, s.object_size)
    return slab_ksize(s)


cdef uint64_t slab_ksize(const kmem_cache* s) noexcept nogil:
    if s.flags & (SLAB_RED_ZONE | SLAB_POISON):
        return s.object_size
    if s.flags & (SLAB_TYPESAFE_BY_RCU | SLAB_STORE_USER):
        return s.inuse
    return s.size


# Compare __do_krealloc().
cdef void* krealloc(machine* m, const void* object, uint64_t size, uint32_t gfp) noexcept nogil:
    cdef const kmem_cache* s = NULL
    cdef void* moved
    cdef uint64_t room
    cdef uint64_t old           # bytes that were asked for
    if size == 0:
        kfree(m, object)
        return <void*>ZERO_SIZE_PTR
    if <uint64_t>object <= ZERO_SIZE_PTR:
        return kmalloc(m, size, gfp)
    if is_slab(object_page(m, object)):
        s = (<const slab*>object_page(m, object)).cache
        room = slab_ksize(s)
        old = get_orig_size(s, <void*>object) if has_orig_size(s) else room
    else:
        room = old = ksize(m, object)
    if size <= room:
        # What is cut off must read as zero if it is claimed back with GFP_ZERO.
        if gfp & GFP_ZERO:
            if old < size:
                memset(<char*>object + old, 0, size - old)
            else:
                memset(<char*>object + size, 0, room - size)
        if s != NULL:
            resize_object(s, <void*>object, size)
        return <void*>object
    moved = kmalloc(m, size, gfp)
    if moved != NULL:
        memcpy(moved, object, old)
        kfree(m, object)
    return moved


cdef void fill_table() noexcept nogil:
    cdef uint32_t i
    for i in range(1025):
        magazine_back[i] = <uint32_t>(AREA_MAGAZINES - kmalloc_index(<uint64_t>i << 3)
                                      * MAGAZINE_BYTES)


fill_table()
alloc_slowly = kmalloc_slow
free_slowly = kfree_slow
attach_areas()
