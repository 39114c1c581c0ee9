# cython: language_level=3, cdivision=True, boundscheck=False, wraparound=False
# cython: initializedcheck=False, nonecheck=False, profile=False, linetrace=False
# Two treaps by address: a binary tree in which no node has a lower priority than its children,
# and priorities are random, so that it is balanced whatever the order of insertions.  Each node
# knows the largest range below it: so the lowest range that is large enough is one descent.
from libc.errno cimport EBUSY, ENOMEM
from libc.stdint cimport int64_t, uint64_t

from realmem._kernel.kernel_caches cimport VMAP_AREA, kernel_alloc, kernel_free
from realmem._kernel.mm_types cimport vmap_area, vmap_space
from realmem.types cimport PAGE_SHIFT, PAGE_SIZE


# ---- treaps -----------------------------------------------------------------

cdef inline uint64_t size_of(const vmap_area* t) noexcept nogil:
    return t.end - t.start


cdef void update(vmap_area* t) noexcept nogil:
    t.largest = size_of(t)
    if t.left != NULL and t.left.largest > t.largest:
        t.largest = t.left.largest
    if t.right != NULL and t.right.largest > t.largest:
        t.largest = t.right.largest


# Part a tree into what begins below `start` and the rest.
cdef void split(vmap_area* t, uint64_t start, vmap_area** low_ret,
                vmap_area** high_ret) noexcept nogil:
    if t == NULL:
        low_ret[0] = high_ret[0] = NULL
    elif t.start < start:
        low_ret[0] = t
        split(t.right, start, &t.right, high_ret)
        update(t)
    else:
        high_ret[0] = t
        split(t.left, start, low_ret, &t.left)
        update(t)


cdef vmap_area* join(vmap_area* low, vmap_area* high) noexcept nogil:
    if low == NULL or high == NULL:
        return high if low == NULL else low
    if low.priority > high.priority:
        low.right = join(low.right, high)
        update(low)
        return low
    high.left = join(low, high.left)
    update(high)
    return high


cdef void insert(vmap_area** root, vmap_area* area) noexcept nogil:
    cdef vmap_area* low
    cdef vmap_area* high
    area.left = area.right = NULL
    update(area)
    split(root[0], area.start, &low, &high)
    root[0] = join(join(low, area), high)


cdef vmap_area* without(vmap_area* t, const vmap_area* area) noexcept nogil:
    if t == area:
        return join(t.left, t.right)
    if area.start < t.start:
        t.left = without(t.left, area)
    else:
        t.right = without(t.right, area)
    update(t)
    return t


# `area` changed its size, but not its place among the others.
cdef void resized(vmap_area* t, const vmap_area* area) noexcept nogil:
    if t != area:
        resized(t.left if area.start < t.start else t.right, area)
    update(t)


cdef vmap_area* find(vmap_area* t, uint64_t addr) noexcept nogil:
    while t != NULL and not t.start <= addr < t.end:
        t = t.left if addr < t.start else t.right
    return t


cdef vmap_area* lower_bound(vmap_area* t, uint64_t addr) noexcept nogil:
    cdef vmap_area* best = NULL
    while t != NULL:
        if t.start >= addr:
            best = t
            t = t.left
        else:
            t = t.right
    return best


cdef inline bint fits(const vmap_area* t, uint64_t size, uint64_t align) noexcept nogil:
    cdef uint64_t start = (t.start + align - 1) & ~(align - 1)
    return t.start <= start < t.end and t.end - start >= size


# The lowest that fits.  With an alignment of a page a subtree that is large enough has one.
cdef vmap_area* find_lowest_match(vmap_area* t, uint64_t size, uint64_t align) noexcept nogil:
    cdef vmap_area* found
    while t != NULL and t.largest >= size:
        found = find_lowest_match(t.left, size, align)
        if found != NULL:
            return found
        if fits(t, size, align):
            return t
        t = t.right
    return NULL


# ---- descriptors ------------------------------------------------------------

# Have two descriptors at hand, the most that a range's making takes; and let go of what is left.
cdef bint preload(vmap_space* s) noexcept nogil:
    cdef vmap_area* area
    for _ in range(2):
        area = <vmap_area*>kernel_alloc(s.mm.mmu.m, VMAP_AREA)
        if area == NULL:
            unload(s)
            return False
        area.next = s.spare
        s.spare = area
    return True


cdef void unload(vmap_space* s) noexcept nogil:
    cdef vmap_area* area = s.spare
    while area != NULL:
        s.spare = area.next
        put(s, area)
        area = s.spare


# Preconditions: preload().
cdef vmap_area* get(vmap_space* s, uint64_t start, uint64_t end) noexcept nogil:
    cdef vmap_area* area = s.spare
    s.spare = area.next
    area.start = start
    area.end = end
    area.flags = 0
    area.nr_pages = 0
    area.next = NULL
    area.priority = next_random(s)
    return area


cdef void put(vmap_space* s, vmap_area* area) noexcept nogil:
    kernel_free(s.mm.mmu.m, VMAP_AREA, area)


# xorshift64*: any well-mixed sequence serves, and this one repeats from run to run.
cdef uint64_t next_random(vmap_space* s) noexcept nogil:
    s.seed ^= s.seed >> 12
    s.seed ^= s.seed << 25
    s.seed ^= s.seed >> 27
    return s.seed * <uint64_t>0x2545F4914F6CDD1D


# ---- taking and giving ------------------------------------------------------

cdef int vmap_areas_init(vmap_space* s, uint64_t start, uint64_t length) noexcept nogil:
    s.busy = s.free = s.lazy = s.spare = NULL
    s.lazy_pages = 0
    s.nr_purges = 0
    s.seed = <uint64_t>0x9E3779B97F4A7C15
    if not preload(s):
        return -ENOMEM
    insert(&s.free, get(s, start, start + length))
    unload(s)
    return 0


cdef void vmap_areas_exit(vmap_space* s) noexcept nogil:
    cdef vmap_area* area = s.lazy
    while area != NULL:
        s.lazy = area.next
        put(s, area)
        area = s.lazy
    put_tree(s, s.busy)
    put_tree(s, s.free)
    s.busy = s.free = NULL


cdef void put_tree(vmap_space* s, vmap_area* t) noexcept nogil:
    if t != NULL:
        put_tree(s, t.left)
        put_tree(s, t.right)
        put(s, t)


cdef vmap_area* alloc_vmap_area_locked(vmap_space* s, uint64_t size, uint64_t align,
                                       uint64_t flags, int* rc_ret) noexcept nogil:
    cdef vmap_area* area
    if not preload(s):
        rc_ret[0] = -ENOMEM
        return NULL
    area = find_lowest_match(s.free, size, align)
    if area == NULL and s.lazy != NULL:
        purge_vmap_areas_locked(s)
        area = find_lowest_match(s.free, size, align)
    if area != NULL:
        area = clip(s, area, (area.start + align - 1) & ~(align - 1), size)
        area.flags = flags
        insert(&s.busy, area)
    else:
        rc_ret[0] = -EBUSY
    unload(s)
    return area


# Cut [start, start + size) out of a free range; what is left stays free.
cdef vmap_area* clip(vmap_space* s, vmap_area* area, uint64_t start,
                     uint64_t size) noexcept nogil:
    cdef uint64_t end = area.end
    cdef bint head = start > area.start
    cdef bint tail = start + size < end
    if not head and not tail:
        s.free = without(s.free, area)
        return area
    if head:
        area.end = start
        resized(s.free, area)
        if tail:
            insert(&s.free, get(s, start + size, end))
    else:
        area.start = start + size
        resized(s.free, area)
    return get(s, start, start + size)


cdef void free_vmap_area_locked(vmap_space* s, vmap_area* area) noexcept nogil:
    s.busy = without(s.busy, area)
    area.next = s.lazy
    s.lazy = area
    s.lazy_pages += <int64_t>(size_of(area) >> PAGE_SHIFT)
    if s.lazy_pages > s.lazy_max:
        purge_vmap_areas_locked(s)


cdef void purge_vmap_areas_locked(vmap_space* s) noexcept nogil:
    cdef vmap_area* area = s.lazy
    cdef vmap_area* next
    s.nr_purges += s.lazy != NULL
    s.lazy = NULL
    s.lazy_pages = 0
    while area != NULL:
        next = area.next
        merge_or_add(s, area)
        area = next


# Compare merge_or_add_vmap_area_augment().
cdef void merge_or_add(vmap_space* s, vmap_area* area) noexcept nogil:
    cdef vmap_area* below = find(s.free, area.start - 1)
    cdef vmap_area* above = find(s.free, area.end)
    area.flags = 0
    area.nr_pages = 0
    if above != NULL:
        s.free = without(s.free, above)
        area.end = above.end
        put(s, above)
    if below != NULL:
        below.end = area.end
        resized(s.free, below)
        put(s, area)
    else:
        insert(&s.free, area)


cdef vmap_area* find_vmap_area_locked(vmap_space* s, uint64_t addr) noexcept nogil:
    return find(s.busy, addr)


cdef vmap_area* next_vmap_area_locked(vmap_space* s, uint64_t addr) noexcept nogil:
    return lower_bound(s.busy, addr)


# ---- recount ----------------------------------------------------------------

cdef bint vmap_areas_valid_locked(const vmap_space* s, uint64_t* where_ret) noexcept nogil:
    cdef uint64_t total = 0
    cdef uint64_t end = 0
    cdef uint64_t at = s.mm.windows.user_start
    cdef const vmap_area* lazy = s.lazy
    cdef int64_t waiting = 0
    cdef const vmap_area* a
    cdef const vmap_area* b
    if not tree_valid(s.busy, s.mm.windows.user_start, &end, &total, where_ret):
        return False
    end = 0
    if not tree_valid(s.free, s.mm.windows.user_start, &end, &total, where_ret):
        return False
    while lazy != NULL:
        where_ret[0] = lazy.start
        total += size_of(lazy)
        waiting += <int64_t>(size_of(lazy) >> PAGE_SHIFT)
        if overlaps(s.busy, lazy) or overlaps(s.free, lazy):
            return False
        lazy = lazy.next
    where_ret[0] = at
    if total != s.mm.windows.length or waiting != s.lazy_pages:
        return False
    # Sorted, apart in each tree, and as much as there is: no busy range may lie in a free one.
    a = lower_bound(s.busy, 0)
    while a != NULL:
        where_ret[0] = a.start
        if overlaps(s.free, a):
            return False
        b = lower_bound(s.busy, a.end)
        a = b
    return True


cdef int64_t vmap_areas_count_locked(const vmap_space* s) noexcept nogil:
    cdef const vmap_area* lazy = s.lazy
    cdef int64_t n = nodes_in(s.busy) + nodes_in(s.free)
    while lazy != NULL:
        n += 1
        lazy = lazy.next
    return n


cdef int64_t nodes_in(const vmap_area* t) noexcept nogil:
    return 0 if t == NULL else nodes_in(t.left) + nodes_in(t.right) + 1


cdef bint overlaps(const vmap_area* t, const vmap_area* area) noexcept nogil:
    while t != NULL:
        if t.start < area.end and area.start < t.end:
            return True
        t = t.left if area.start < t.start else t.right
    return False


cdef bint tree_valid(const vmap_area* t, uint64_t low, uint64_t* end_ref, uint64_t* total_ref,
                     uint64_t* where_ret) noexcept nogil:
    cdef uint64_t largest
    if t == NULL:
        return True
    if not tree_valid(t.left, low, end_ref, total_ref, where_ret):
        return False
    where_ret[0] = t.start
    if t.start < low or t.start < end_ref[0] or t.end <= t.start or (t.start | t.end) & (
            PAGE_SIZE - 1):
        return False
    end_ref[0] = t.end
    total_ref[0] += size_of(t)
    largest = size_of(t)
    if t.left != NULL:
        largest = max(largest, t.left.largest)
    if t.right != NULL:
        largest = max(largest, t.right.largest)
    if t.largest != largest:
        return False
    return tree_valid(t.right, low, end_ref, total_ref, where_ret)
