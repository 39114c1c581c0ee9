# Objects that several processes map, and their frames by page: shared anonymous memory
# (shmem.pyx) and files (filemap.pyx).  Signal-safe.  Compare include/linux/fs.h:struct
# address_space, mm/filemap.c, mm/truncate.c.
from libc.stdint cimport int64_t, uint64_t

from realmem._kernel.mm_types cimport address_space, mm_struct, mmu
from realmem.types cimport page

# A new object with one reference and no frames, or NULL.
cdef address_space* mapping_create(mmu* u) noexcept nogil
cdef void mapping_get(address_space* object) noexcept nogil
# Drop a reference; the last one frees every frame.  Preconditions: no VMA maps it then.
cdef void mapping_put(address_space* object) noexcept nogil

# What stands in the place of a frame of shared memory that is swapped: its entry, and the lowest
# bit, which no frame's address has.
cdef inline bint is_value(const void* item) noexcept nogil:
    return <uint64_t>item & 1 != 0

cdef inline uint64_t value_entry(const void* item) noexcept nogil:
    return <uint64_t>item & ~<uint64_t>1

cdef inline void* make_value(uint64_t entry) noexcept nogil:
    return <void*>(entry | 1)

# Enter a frame, whose reference becomes the object's; `flags` are PG_*.
# Preconditions: object.lock held; the page has none.
# Returns: 0 or -ENOMEM with nothing entered.
cdef int mapping_add_locked(address_space* object, uint64_t index, page* p,
                            uint64_t flags) noexcept nogil

# The same for a frame that stands there already.
cdef void mapping_enter_locked(address_space* object, uint64_t index, page* p,
                               uint64_t flags) noexcept nogil
# A frame is its page no more; the reference becomes the caller's.  What stands in its place is
# the caller's business.
cdef void mapping_leave_locked(address_space* object, page* p) noexcept nogil
# So many pages more are swapped (fewer, negative).
cdef void mapping_swapped_locked(address_space* object, int64_t by) noexcept nogil

# Which frames, and which mappings of them.
cdef enum:
    TAKE_ALL = 0                # private copies too, as truncation does
    TAKE_OBJECT = 1             # the object's own
    TAKE_CLEAN = 2              # those of its own that equal what is in the file

# Visit every place where pages [first, last] may be mapped, under its mm.lock; what was found may
# have changed since, so that the visitor looks which VMAs of [start, end) map the object now.
# Context: no mm.lock held.
# Returns: whether every place was found; else a change of VMAs came in between.
ctypedef void (*place_visitor)(mm_struct* mm, address_space* object, uint64_t start, uint64_t end,
                               void* data) noexcept nogil
cdef bint mapping_walk(address_space* object, uint64_t first, uint64_t last, place_visitor visit,
                       void* data) noexcept nogil

# Give up every frame of a file that nobody maps any more, and wait until reclaim has let go of it.
cdef void mapping_empty(address_space* object) noexcept nogil

# Unmap pages [first, last] wherever they are mapped.
# Context: no mm.lock held.
# Mirrors: mm/memory.c:unmap_mapping_pages().
# Returns: whether that was everywhere; else a change of VMAs came in between.
cdef bint mapping_unmap(address_space* object, uint64_t first, uint64_t last,
                        int what) noexcept nogil

# Take out the frames that equal the file and that nobody maps.
# Mirrors: mm/truncate.c:invalidate_mapping_pages().
cdef void mapping_invalidate(address_space* object) noexcept nogil

# Take the frames of pages [first, last] out, unmapped before.
# Context: no mm.lock held.
# Mirrors: mm/truncate.c:truncate_inode_pages_range(), invalidate_inode_pages2_range().
# Returns: whether none is left; TAKE_CLEAN leaves what is pinned or in use.
cdef bint mapping_drop(address_space* object, uint64_t first, uint64_t last,
                       int what) noexcept nogil
