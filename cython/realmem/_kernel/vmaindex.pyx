# cython: language_level=3, cdivision=True, boundscheck=False, wraparound=False
# cython: initializedcheck=False, nonecheck=False, profile=False, linetrace=False
from libc.stdint cimport int64_t, uint64_t
from libc.string cimport memcpy, memmove, memset

from realmem._kernel.kernel_caches cimport VM_AREA_STRUCT, kernel_alloc, kernel_free
from realmem._kernel.mm_types cimport (
    CHUNK_SLOTS, vm_area_struct, vma_chunk, vma_cursor, vma_dir, vma_index, vma_slot,
)
from realmem.compiler cimport BUG, unlikely
from realmem.types cimport machine

cdef enum:
    JOIN_BELOW = 48             # a chunk with fewer slots joins a neighbour,
    JOINED_MOST = 96            # unless they would be more together than these


# ---- looking ----------------------------------------------------------------

# The last directory entry whose first VMA begins at or below addr; 0 when none does.
cdef inline int64_t dir_of(const vma_index* index, uint64_t addr) noexcept nogil:
    cdef int64_t low = 0
    cdef int64_t high = index.nr_dir
    cdef int64_t middle
    while low < high:
        middle = (low + high) >> 1
        if index.dir[middle].start <= addr:
            low = middle + 1
        else:
            high = middle
    return low - 1 if low > 0 else 0


# The first slot of a chunk whose end is above addr; its count when there is none.
cdef inline int64_t slot_of(const vma_dir* entry, uint64_t addr) noexcept nogil:
    cdef int64_t low = 0
    cdef int64_t high = entry.count
    cdef int64_t middle
    while low < high:
        middle = (low + high) >> 1
        if entry.chunk.slots[middle].end > addr:
            high = middle
        else:
            low = middle + 1
    return low


cdef vma_slot* vma_find(const vma_index* index, uint64_t addr) noexcept nogil:
    cdef int64_t at, slot
    if unlikely(index.nr_dir == 0):
        return NULL
    at = dir_of(index, addr)
    slot = slot_of(index.dir + at, addr)
    if slot < index.dir[at].count:
        return index.dir[at].chunk.slots + slot
    return index.dir[at + 1].chunk.slots if at + 1 < index.nr_dir else NULL


cdef vma_slot* vma_first(vma_index* index, uint64_t addr, vma_cursor* cursor) noexcept nogil:
    cursor.index = index
    cursor.dir = 0
    cursor.slot = 0
    if index.nr_dir == 0:
        return NULL
    cursor.dir = dir_of(index, addr)
    cursor.slot = slot_of(index.dir + cursor.dir, addr)
    return here(cursor)


cdef inline vma_slot* here(vma_cursor* cursor) noexcept nogil:
    if cursor.slot >= cursor.index.dir[cursor.dir].count:
        if cursor.dir + 1 >= cursor.index.nr_dir:
            return NULL
        cursor.dir += 1
        cursor.slot = 0
    return cursor.index.dir[cursor.dir].chunk.slots + cursor.slot


cdef vma_slot* vma_next(vma_cursor* cursor) noexcept nogil:
    cursor.slot += 1
    return here(cursor)


cdef vma_slot* vma_before(const vma_cursor* cursor) noexcept nogil:
    cdef const vma_dir* entry
    if cursor.slot > 0:
        return cursor.index.dir[cursor.dir].chunk.slots + (cursor.slot - 1)
    if cursor.dir == 0:
        return NULL
    entry = cursor.index.dir + (cursor.dir - 1)
    return entry.chunk.slots + (entry.count - 1)


cdef vm_area_struct* vma_at(const vma_index* index, uint64_t start) noexcept nogil:
    cdef vma_slot* slot = vma_find(index, start)
    return slot.vma if slot != NULL and slot.start == start else NULL


# ---- changing ---------------------------------------------------------------

cdef vma_chunk* chunk_get(vma_index* index) noexcept nogil:
    cdef vma_chunk* chunk = index.spare
    if chunk != NULL:
        index.spare = (<vma_chunk**>chunk)[0]
    else:
        if index.nr_taken == NR_VMA_CHUNKS:
            BUG("more VMAs than their index holds")
        chunk = index.chunks + index.nr_taken
        index.nr_taken += 1
    return chunk


cdef void chunk_put(vma_index* index, vma_chunk* chunk) noexcept nogil:
    (<vma_chunk**>chunk)[0] = index.spare
    index.spare = chunk


cdef void dir_insert(vma_index* index, int64_t at, vma_chunk* chunk, int64_t count) noexcept nogil:
    memmove(index.dir + at + 1, index.dir + at, (index.nr_dir - at) * sizeof(vma_dir))
    index.nr_dir += 1
    index.dir[at].chunk = chunk
    index.dir[at].count = count
    index.dir[at].start = chunk.slots[0].start


cdef void dir_erase(vma_index* index, int64_t at) noexcept nogil:
    chunk_put(index, index.dir[at].chunk)
    index.nr_dir -= 1
    memmove(index.dir + at, index.dir + at + 1, (index.nr_dir - at) * sizeof(vma_dir))


cdef void vma_insert(vma_index* index, vm_area_struct* vma) noexcept nogil:
    cdef int64_t at = 0, slot = 0, half
    cdef vma_dir* entry
    cdef vma_chunk* chunk
    cdef vma_slot* to
    if index.nr_dir == 0:
        chunk = chunk_get(index)
        chunk.slots[0].start = vma.vm_start
        dir_insert(index, 0, chunk, 0)
    else:
        at = dir_of(index, vma.vm_start)
        slot = slot_of(index.dir + at, vma.vm_start)
    entry = index.dir + at
    if entry.count == CHUNK_SLOTS:
        # Addresses often ascend: a chunk that is appended to stays full.
        half = CHUNK_SLOTS - 1 if slot == CHUNK_SLOTS else CHUNK_SLOTS / 2
        chunk = chunk_get(index)
        memcpy(chunk.slots, entry.chunk.slots + half, (CHUNK_SLOTS - half) * sizeof(vma_slot))
        entry.count = half
        dir_insert(index, at + 1, chunk, CHUNK_SLOTS - half)
        if slot > half:
            at += 1
            slot -= half
        entry = index.dir + at
    to = entry.chunk.slots + slot
    memmove(to + 1, to, (entry.count - slot) * sizeof(vma_slot))
    to.start = vma.vm_start
    to.end = vma.vm_end
    to.vma = vma
    entry.count += 1
    index.count += 1
    if slot == 0:
        entry.start = vma.vm_start


cdef void vma_erase(vma_index* index, uint64_t start) noexcept nogil:
    cdef int64_t at = dir_of(index, start)
    cdef vma_dir* entry = index.dir + at
    cdef int64_t slot = slot_of(entry, start)
    cdef vma_slot* gone = entry.chunk.slots + slot
    if slot >= entry.count or gone.start != start:
        BUG("a VMA is taken away that is not there")
    entry.count -= 1
    index.count -= 1
    memmove(gone, gone + 1, (entry.count - slot) * sizeof(vma_slot))
    if entry.count == 0:
        dir_erase(index, at)
        return
    entry.start = entry.chunk.slots[0].start
    if entry.count < JOIN_BELOW:
        if at + 1 < index.nr_dir and entry.count + entry[1].count <= JOINED_MOST:
            join(index, at)
        elif at > 0 and entry.count + (entry - 1).count <= JOINED_MOST:
            join(index, at - 1)


# Put the slots of the next chunk behind those of this one.
cdef void join(vma_index* index, int64_t at) noexcept nogil:
    cdef vma_dir* entry = index.dir + at
    memcpy(entry.chunk.slots + entry.count, entry[1].chunk.slots,
           entry[1].count * sizeof(vma_slot))
    entry.count += entry[1].count
    dir_erase(index, at + 1)


cdef void vma_lower(vma_index* index, vma_slot* slot, uint64_t start) noexcept nogil:
    cdef int64_t at = dir_of(index, slot.start)
    slot.start = start
    slot.vma.vm_start = start
    if index.dir[at].chunk.slots == slot:
        index.dir[at].start = start


cdef void vma_index_clear(vma_index* index) noexcept nogil:
    index.nr_dir = 0
    index.nr_taken = 0
    index.count = 0
    index.spare = NULL


# ---- descriptors ------------------------------------------------------------

cdef vm_area_struct* vm_area_alloc(machine* m, int64_t n) noexcept nogil:
    cdef vm_area_struct* list = NULL
    cdef vm_area_struct* vma
    while n > 0:
        vma = <vm_area_struct*>kernel_alloc(m, VM_AREA_STRUCT)
        if vma == NULL:
            vm_area_free_list(m, list)
            return NULL
        memset(vma, 0, sizeof(vm_area_struct))
        vma.vm_next = list
        list = vma
        n -= 1
    return list


cdef void vm_area_free_list(machine* m, vm_area_struct* list) noexcept nogil:
    cdef vm_area_struct* next
    while list != NULL:
        next = list.vm_next
        kernel_free(m, VM_AREA_STRUCT, list)
        list = next
