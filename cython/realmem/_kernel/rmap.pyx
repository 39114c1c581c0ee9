# cython: language_level=3, cdivision=True, boundscheck=False, wraparound=False
# cython: initializedcheck=False, nonecheck=False, profile=False, linetrace=False
# A treap by first page, then by address of the node; each node knows the highest page mapped in
# its subtree.  Relatives by fork share one anon_vma, where Linux makes a chain: a
# page's search visits siblings that cannot have it, and asks their page tables.
from libc.errno cimport ENOMEM
from libc.stdint cimport int64_t, uint64_t

from realmem._kernel.host_calls cimport mutex_lock, mutex_unlock
from realmem._kernel.kernel_caches cimport ANON_VMA, kernel_alloc, kernel_free
from realmem._kernel.mm_types cimport (
    VM_ACCESS, VM_MAYBE_GUARD, VM_SOFTDIRTY, address_space, anon_vma, mm_struct, mmu, rmap_node,
    vm_area_struct, vma_cursor, vma_slot,
)
from realmem._kernel.vmaindex cimport vma_before, vma_first, vma_next
from realmem.compiler cimport SEQ_CST, atomic64_add_return, load64
from realmem.types cimport PAGE_SHIFT, PG_anon, page


# ---- the treap --------------------------------------------------------------

cdef inline uint64_t last_page(const vm_area_struct* vma) noexcept nogil:
    return vma.vm_pgoff + ((vma.vm_end - vma.vm_start) >> PAGE_SHIFT) - 1


cdef inline void update(rmap_node* node) noexcept nogil:
    cdef uint64_t last = last_page(node.vma)
    if node.left != NULL and node.left.last > last:
        last = node.left.last
    if node.right != NULL and node.right.last > last:
        last = node.right.last
    node.last = last


cdef inline bint before(const rmap_node* a, const rmap_node* b) noexcept nogil:
    if a.vma.vm_pgoff != b.vma.vm_pgoff:
        return a.vma.vm_pgoff < b.vma.vm_pgoff
    return <uint64_t>a < <uint64_t>b


# What comes before `at`, and the rest.
cdef void split(rmap_node* node, const rmap_node* at, rmap_node** left_ret,
                rmap_node** right_ret) noexcept nogil:
    if node == NULL:
        left_ret[0] = NULL
        right_ret[0] = NULL
    elif before(node, at):
        left_ret[0] = node
        split(node.right, at, &node.right, right_ret)
        update(node)
    else:
        right_ret[0] = node
        split(node.left, at, left_ret, &node.left)
        update(node)


cdef void insert(rmap_node** root, rmap_node* new) noexcept nogil:
    cdef rmap_node* node = root[0]
    if node != NULL and node.priority >= new.priority:
        insert(&node.left if before(new, node) else &node.right, new)
        update(node)
        return
    split(node, new, &new.left, &new.right)
    update(new)
    root[0] = new


cdef rmap_node* joined(rmap_node* left, rmap_node* right) noexcept nogil:
    if left == NULL:
        return right
    if right == NULL:
        return left
    if left.priority >= right.priority:
        left.right = joined(left.right, right)
        update(left)
        return left
    right.left = joined(left, right.left)
    update(right)
    return right


cdef void remove(rmap_node** root, rmap_node* gone) noexcept nogil:
    cdef rmap_node* node = root[0]
    if node == gone:
        root[0] = joined(gone.left, gone.right)
        return
    remove(&node.left if before(gone, node) else &node.right, gone)
    update(node)


# A mix of the descriptor's address (splitmix64): alike only for alike addresses.
cdef inline uint64_t priority_of(const vm_area_struct* vma) noexcept nogil:
    cdef uint64_t x = <uint64_t>vma + <uint64_t>0x9E3779B97F4A7C15
    x = (x ^ (x >> 30)) * <uint64_t>0xBF58476D1CE4E5B9
    x = (x ^ (x >> 27)) * <uint64_t>0x94D049BB133111EB
    return x ^ (x >> 31)


cdef inline void enter(rmap_node** root, rmap_node* node, vm_area_struct* vma) noexcept nogil:
    node.vma = vma
    node.priority = priority_of(vma)
    insert(root, node)


cdef inline void enter_anon(vm_area_struct* vma) noexcept nogil:
    enter(&vma.anon_vma.root, &vma.anon, vma)


cdef void rmap_link(mmu* u, vm_area_struct* vma) noexcept nogil:
    mutex_lock(&u.rmap_lock)
    if vma.vm_object != NULL:
        atomic64_add_return(&u.relinks, 1, SEQ_CST)
        enter(&vma.vm_object.i_mmap, &vma.shared, vma)
    if vma.anon_vma != NULL:
        enter_anon(vma)
    mutex_unlock(&u.rmap_lock)


cdef void rmap_unlink(mmu* u, vm_area_struct* vma) noexcept nogil:
    mutex_lock(&u.rmap_lock)
    if vma.vm_object != NULL:
        atomic64_add_return(&u.relinks, 1, SEQ_CST)
        remove(&vma.vm_object.i_mmap, &vma.shared)
    if vma.anon_vma != NULL:
        remove(&vma.anon_vma.root, &vma.anon)
    mutex_unlock(&u.rmap_lock)


# ---- anonymous pages --------------------------------------------------------

cdef void anon_vma_put(mmu* u, anon_vma* of) noexcept nogil:
    if atomic_add_return(&of.refcount, -1, SEQ_CST) == 0:
        kernel_free(u.m, ANON_VMA, of)


# Whether two neighbours could be one VMA but for their rights; then they may share frames'
# owner at once.  Mirrors: anon_vma_compatible(), reusable_anon_vma().
cdef inline bint reusable(const vm_area_struct* of, const vm_area_struct* left,
                          const vm_area_struct* right) noexcept nogil:
    return (of.anon_vma != NULL and not of.forked
            and left.vm_end == right.vm_start and left.policy == right.policy
            and left.file == right.file and left.vm_object == right.vm_object
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
        anon_vma_get(of.anon_vma)
    else:
        vma.anon_vma = <anon_vma*>kernel_alloc(u.m, ANON_VMA)
        if vma.anon_vma == NULL:
            return -ENOMEM
        vma.anon_vma.refcount = 1
        vma.anon_id = new_id(u)
    vma.forked = 0
    mutex_lock(&u.rmap_lock)
    enter_anon(vma)
    mutex_unlock(&u.rmap_lock)
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
    anon_vma_get(parent.anon_vma)
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


cdef void collect(rmap_node* node, collector* c) noexcept nogil:
    cdef const vm_area_struct* vma
    cdef uint64_t first
    if node == NULL or node.last < c.first or c.found == c.room:
        return
    collect(node.left, c)
    vma = node.vma
    if vma.vm_pgoff > c.last:
        return
    if last_page(vma) >= c.first and c.found < c.room:
        if c.skip > 0:
            c.skip -= 1
        else:
            first = max(c.first, vma.vm_pgoff)
            c.places[c.found].mm = vma.vm_mm
            c.places[c.found].mm_id = vma.vm_mm.id
            c.places[c.found].address = vma.vm_start + ((first - vma.vm_pgoff) << PAGE_SHIFT)
            if c.ends != NULL:
                first = min(c.last, last_page(vma)) + 1 - vma.vm_pgoff
                c.ends[c.found] = vma.vm_start + (first << PAGE_SHIFT)
            c.found += 1
    collect(node.right, c)


cdef int64_t rmap_ranges(mmu* u, rmap_node** root, uint64_t first, uint64_t last,
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
    cdef rmap_node* root = NULL
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
                else (<address_space*>p.mapping).i_mmap)
    c.first = c.last = p.index
    collect(root, &c)
    mutex_unlock(&u.rmap_lock)
    return c.found


cdef int64_t rmap_anon_places(mmu* u, anon_vma* of, uint64_t index, rmap_place* places,
                              int64_t skip, int64_t n) noexcept nogil:
    return rmap_ranges(u, &of.root, index, index, places, NULL, skip, n)
