# cython: language_level=3, cdivision=True, boundscheck=False, wraparound=False
# cython: initializedcheck=False, nonecheck=False, profile=False, linetrace=False
from libc.errno cimport ENOMEM
from libc.stdint cimport uint64_t
from libc.string cimport memset

from realmem._kernel.kernel_caches cimport RADIX_TREE_NODE, kernel_alloc, kernel_free
from realmem._kernel.mm_types cimport RADIX_SHIFT, RADIX_SLOTS, radix_node
from realmem.types cimport machine

cdef enum: MOST_LEVELS = 11         # 64 bits


cdef inline uint64_t slot_of(const radix_node* node, uint64_t index) noexcept nogil:
    return (index >> node.shift) & (RADIX_SLOTS - 1)


cdef inline bint covers(const radix_node* root, uint64_t index) noexcept nogil:
    return root.shift + RADIX_SHIFT >= 64 or index >> (root.shift + RADIX_SHIFT) == 0


cdef radix_node* node_alloc(machine* m, int shift) noexcept nogil:
    cdef radix_node* node = <radix_node*>kernel_alloc(m, RADIX_TREE_NODE)
    if node != NULL:
        memset(node, 0, sizeof(radix_node))
        node.shift = shift
    return node


cdef void* radix_load(const radix_node* root, uint64_t index) noexcept nogil:
    cdef const radix_node* node = root
    if node == NULL or not covers(node, index):
        return NULL
    while node.shift > 0:
        node = <const radix_node*>node.slots[slot_of(node, index)]
        if node == NULL:
            return NULL
    return node.slots[slot_of(node, index)]


cdef int radix_store(machine* m, radix_node** root_ref, uint64_t index,
                     void* item) noexcept nogil:
    cdef radix_node* node = root_ref[0]
    cdef radix_node* below
    cdef radix_node** slot
    if node == NULL:
        node = node_alloc(m, 0)
        if node == NULL:
            return -ENOMEM
        root_ref[0] = node
    while not covers(node, index):
        below = node
        if below.count == 0:            # what a failure left; it can serve any level
            below.shift += RADIX_SHIFT
            continue
        node = node_alloc(m, below.shift + RADIX_SHIFT)
        if node == NULL:
            return -ENOMEM
        node.slots[0] = below
        node.count = 1
        root_ref[0] = node
    while node.shift > 0:
        slot = <radix_node**>&node.slots[slot_of(node, index)]
        if slot[0] == NULL:
            below = node_alloc(m, node.shift - RADIX_SHIFT)
            if below == NULL:
                radix_erase(m, root_ref, index)     # of a path without an end
                return -ENOMEM
            slot[0] = below
            node.count += 1
        node = slot[0]
    node.count += node.slots[slot_of(node, index)] == NULL
    node.slots[slot_of(node, index)] = item
    return 0


cdef void radix_replace(radix_node* root, uint64_t index, void* item) noexcept nogil:
    cdef radix_node* node = root
    while node.shift > 0:
        node = <radix_node*>node.slots[slot_of(node, index)]
    node.slots[slot_of(node, index)] = item


cdef void* radix_erase(machine* m, radix_node** root_ref, uint64_t index) noexcept nogil:
    cdef radix_node** path[MOST_LEVELS]
    cdef radix_node** at = root_ref
    cdef radix_node* node = root_ref[0]
    cdef void* item = NULL
    cdef int depth = 0
    if node == NULL or not covers(node, index):
        return NULL
    while node != NULL:
        path[depth] = at
        depth += 1
        if node.shift == 0:
            item = node.slots[slot_of(node, index)]
            if item != NULL:
                node.slots[slot_of(node, index)] = NULL
                node.count -= 1
            break
        at = <radix_node**>&node.slots[slot_of(node, index)]
        node = at[0]
    while depth > 0:
        depth -= 1
        node = path[depth][0]
        if node.count != 0:
            break
        path[depth][0] = NULL
        kernel_free(m, RADIX_TREE_NODE, node)
        if depth > 0:
            path[depth - 1][0].count -= 1
    return item


cdef void* radix_next(const radix_node* root, uint64_t* index_ref) noexcept nogil:
    cdef const radix_node* node
    cdef uint64_t index = index_ref[0]
    cdef uint64_t slot
    while root != NULL and covers(root, index):
        node = root
        while True:
            slot = slot_of(node, index)
            while slot < RADIX_SLOTS and node.slots[slot] == NULL:
                slot += 1
                index = ((index >> node.shift) + 1) << node.shift
            if slot == RADIX_SLOTS:
                break                   # the index went on to the next node: from the root
            if node.shift == 0:
                index_ref[0] = index
                return node.slots[slot]
            node = <const radix_node*>node.slots[slot]
        if index == 0:
            return NULL                 # past the last index
    return NULL
