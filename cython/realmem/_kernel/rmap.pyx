# cython: language_level=3, cdivision=True, boundscheck=False, wraparound=False
# cython: initializedcheck=False, nonecheck=False, profile=False, linetrace=False
# A treap by first page, then by address of the descriptor; each node knows the highest page
# mapped in its subtree.  Relatives by fork share one anon_vma, where Linux makes a chain: a
# page's search visits siblings that cannot have it, and asks their page tables.
from libc.errno cimport ENOMEM
from libc.stdint cimport int64_t, uint64_t

from realmem._kernel.host_calls cimport mutex_lock, mutex_unlock
from realmem._kernel.kernel_caches cimport ANON_VMA, kernel_alloc, kernel_free
from realmem._kernel.mm_types cimport (
    VM_ACCESS, VM_MAYBE_GUARD, VM_SOFTDIRTY, anon_vma, mm_struct, mmu, shmem, vm_area_struct,
    vma_cursor,
    vma_slot,
)
from realmem._kernel.vmaindex cimport vma_before, vma_first, vma_next
from realmem.compiler cimport load64
from realmem.types cimport PAGE_SHIFT, PG_anon, page


# ---- the treap --------------------------------------------------------------

cdef inline uint64_t last_page(const vm_area_struct* vma) noexcept nogil:
    return vma.vm_pgoff + ((vma.vm_end - vma.vm_start) >> PAGE_SHIFT) - 1


cdef inline void update(vm_area_struct* node) noexcept nogil:
    cdef uint64_t last = last_page(node)
    if node.rmap.left != NULL and node.rmap.left.rmap.last > last:
        last = node.rmap.left.rmap.last
    if node.rmap.right != NULL and node.rmap.right.rmap.last > last:
        last = node.rmap.right.rmap.last
    node.rmap.last = last


cdef inline bint before(const vm_area_struct* a, const vm_area_struct* b) noexcept nogil:
    if a.vm_pgoff != b.vm_pgoff:
        return a.vm_pgoff < b.vm_pgoff
    return <uint64_t>a < <uint64_t>b


# What comes before `at`, and the rest.
cdef void split(vm_area_struct* node, const vm_area_struct* at, vm_area_struct** left_ret,
                vm_area_struct** right_ret) noexcept nogil:
    if node == NULL:
        left_ret[0] = NULL
        right_ret[0] = NULL
    elif before(node, at):
        left_ret[0] = node
        split(node.rmap.right, at, &node.rmap.right, right_ret)
        update(node)
    else:
        right_ret[0] = node
        split(node.rmap.left, at, left_ret, &node.rmap.left)
        update(node)


cdef void insert(vm_area_struct** root, vm_area_struct* vma) noexcept nogil:
    cdef vm_area_struct* node = root[0]
    if node != NULL and node.rmap.priority >= vma.rmap.priority:
        insert(&node.rmap.left if before(vma, node) else &node.rmap.right, vma)
        update(node)
        return
    split(node, vma, &vma.rmap.left, &vma.rmap.right)
    update(vma)
    root[0] = vma


cdef vm_area_struct* joined(vm_area_struct* left, vm_area_struct* right) noexcept nogil:
    if left == NULL:
        return right
    if right == NULL:
        return left
    if left.rmap.priority >= right.rmap.priority:
        left.rmap.right = joined(left.rmap.right, right)
        update(left)
        return left
    right.rmap.left = joined(left, right.rmap.left)
    update(right)
    return right


cdef void remove(vm_area_struct** root, vm_area_struct* vma) noexcept nogil:
    cdef vm_area_struct* node = root[0]
    if node == vma:
        root[0] = joined(vma.rmap.left, vma.rmap.right)
        return
    remove(&node.rmap.left if before(vma, node) else &node.rmap.right, vma)
    update(node)


cdef inline vm_area_struct** root_of(vm_area_struct* vma) noexcept nogil:
    if vma.vm_object != NULL:
        return &vma.vm_object.i_mmap
    return &vma.anon_vma.root if vma.anon_vma != NULL else NULL


# A mix of the descriptor's address (splitmix64): alike only for alike addresses.
cdef inline uint64_t priority_of(const vm_area_struct* vma) noexcept nogil:
    cdef uint64_t x = <uint64_t>vma + <uint64_t>0x9E3779B97F4A7C15
    x = (x ^ (x >> 30)) * <uint64_t>0xBF58476D1CE4E5B9
    x = (x ^ (x >> 27)) * <uint64_t>0x94D049BB133111EB
    return x ^ (x >> 31)


cdef void rmap_link(mmu* u, vm_area_struct* vma) noexcept nogil:
    cdef vm_area_struct** root
    mutex_lock(&u.rmap_lock)
    root = root_of(vma)
    if root != NULL:
        vma.rmap.priority = priority_of(vma)
        insert(root, vma)
        if vma.anon_vma != NULL:
            vma.anon_vma.nr_vmas += 1
    mutex_unlock(&u.rmap_lock)


cdef void rmap_unlink(mmu* u, vm_area_struct* vma, anon_vma** dead_ref) noexcept nogil:
    cdef vm_area_struct** root
    mutex_lock(&u.rmap_lock)
    root = root_of(vma)
    if root != NULL:
        remove(root, vma)
        if vma.anon_vma != NULL:
            vma.anon_vma.nr_vmas -= 1
            if vma.anon_vma.nr_vmas == 0 and not vma.anon_vma.queued:
                vma.anon_vma.queued = 1
                vma.anon_vma.next = dead_ref[0]
                dead_ref[0] = vma.anon_vma
    mutex_unlock(&u.rmap_lock)


# ---- anonymous pages --------------------------------------------------------

cdef void anon_vma_free(mmu* u, anon_vma* dead) noexcept nogil:
    cdef anon_vma* next
    while dead != NULL:
        next = dead.next
        dead.next = NULL
        dead.queued = 0
        # One of a list may be in use again: what is merged leaves and enters.
        if dead.nr_vmas == 0:
            kernel_free(u.m, ANON_VMA, dead)
        dead = next


# Whether two neighbours could be one VMA but for their rights; then they may share frames'
# owner at once.  Mirrors: anon_vma_compatible(), reusable_anon_vma().
cdef inline bint reusable(const vm_area_struct* of, const vm_area_struct* left,
                          const vm_area_struct* right) noexcept nogil:
    return (of.anon_vma != NULL and not of.forked
            and left.vm_end == right.vm_start and left.policy == right.policy
            and left.vm_object == right.vm_object
            and (left.vm_flags ^ right.vm_flags) & ~<uint64_t>(
                VM_ACCESS | VM_SOFTDIRTY | VM_MAYBE_GUARD) == 0
            and right.vm_pgoff == left.vm_pgoff + (
                (left.vm_end - left.vm_start) >> PAGE_SHIFT))


cdef int anon_vma_prepare(mm_struct* mm, vm_area_struct* vma) noexcept nogil:
    cdef mmu* u = mm.mmu
    cdef vma_cursor cursor
    cdef vma_slot* left
    cdef vma_slot* right
    cdef vm_area_struct* of = NULL
    if vma.anon_vma != NULL:
        return 0
    vma_first(&mm.vmas, vma.vm_start, &cursor)
    left = vma_before(&cursor)
    right = vma_next(&cursor)
    if right != NULL and reusable(right.vma, vma, right.vma):
        of = right.vma
    elif left != NULL and reusable(left.vma, left.vma, vma):
        of = left.vma
    if of != NULL:
        vma.anon_vma = of.anon_vma
        vma.anon_id = of.anon_id
    else:
        vma.anon_vma = <anon_vma*>kernel_alloc(u.m, ANON_VMA)
        if vma.anon_vma == NULL:
            return -ENOMEM
        vma.anon_id = new_id(u)
    vma.forked = 0
    rmap_link(u, vma)
    mm.generation += 1
    return 0


cdef uint64_t new_id(mmu* u) noexcept nogil:
    cdef uint64_t id
    mutex_lock(&u.rmap_lock)
    u.next_anon_id += 1
    id = u.next_anon_id
    mutex_unlock(&u.rmap_lock)
    return id


cdef void anon_vma_fork(mmu* u, vm_area_struct* child,
                        const vm_area_struct* parent) noexcept nogil:
    child.anon_vma = parent.anon_vma
    child.anon_id = new_id(u)
    child.forked = 1


# ---- looking ----------------------------------------------------------------

cdef struct collector:
    uint64_t first              # pages looked for
    uint64_t last
    rmap_place* places
    uint64_t* ends              # of the VMAs' parts; may be NULL
    int64_t skip
    int64_t room
    int64_t found


cdef void collect(vm_area_struct* node, collector* c) noexcept nogil:
    cdef uint64_t first
    if node == NULL or node.rmap.last < c.first or c.found == c.room:
        return
    collect(node.rmap.left, c)
    if node.vm_pgoff > c.last:
        return
    if last_page(node) >= c.first and c.found < c.room:
        if c.skip > 0:
            c.skip -= 1
        else:
            first = max(c.first, node.vm_pgoff)
            c.places[c.found].mm = node.vm_mm
            c.places[c.found].mm_id = node.vm_mm.id
            c.places[c.found].address = node.vm_start + ((first - node.vm_pgoff) << PAGE_SHIFT)
            if c.ends != NULL:
                first = min(c.last, last_page(node)) + 1 - node.vm_pgoff
                c.ends[c.found] = node.vm_start + (first << PAGE_SHIFT)
            c.found += 1
    collect(node.rmap.right, c)


cdef int64_t rmap_ranges(mmu* u, vm_area_struct** root, uint64_t first, uint64_t last,
                         rmap_place* places, uint64_t* ends, int64_t skip,
                         int64_t n) noexcept nogil:
    cdef collector c
    c.first = first
    c.last = last
    c.places = places
    c.ends = ends
    c.skip = skip
    c.room = n
    c.found = 0
    mutex_lock(&u.rmap_lock)
    collect(root[0], &c)
    mutex_unlock(&u.rmap_lock)
    return c.found


cdef int64_t rmap_places(mmu* u, const page* p, rmap_place* places, int64_t skip,
                         int64_t n) noexcept nogil:
    cdef collector c
    cdef vm_area_struct* root = NULL
    c.places = places
    c.ends = NULL
    c.skip = skip
    c.room = n
    c.found = 0
    mutex_lock(&u.rmap_lock)
    # Under the lock an anon_vma or object that is named here is there: frames are unmapped
    # before it goes.
    if p.mapping != NULL and <int64_t>load64(<uint64_t*>&p.counts.word) >> 32 >= 0:     # mapcount
        root = ((<anon_vma*>p.mapping).root if p.flags & (1 << PG_anon)
                else (<shmem*>p.mapping).i_mmap)
    c.first = c.last = p.index
    collect(root, &c)
    mutex_unlock(&u.rmap_lock)
    return c.found
