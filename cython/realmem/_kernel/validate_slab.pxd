# Recount the slab allocator: each object is in exactly one place, each slab is counted.
from libc.stdint cimport int64_t, uint64_t

from realmem._kernel.slab_types cimport kmem_cache
from realmem.types cimport machine

# What was found wrong first, and where.
cdef enum:
    SLAB_VALID = 0
    BAD_SLAB_LINK = 1           # a partial list's neighbours disagree
    BAD_SLAB_CACHE = 2          # a slab on a list of another cache or node
    BAD_SLAB_INUSE = 3          # in use where none or all are, or more than there are
    BAD_FREELIST = 4            # a free list is longer or shorter than inuse says
    BAD_OBJECT = 5              # a free object that is not of this cache, or inside one
    OBJECT_TWICE = 6            # free in two places
    BAD_NR_PARTIAL = 7          # the count differs from the list, or from the slabs
    BAD_NR_SLABS = 8            # the count of slabs differs from the frames
    BAD_TOTAL_OBJECTS = 9
    BAD_SLAB_FRAME = 10         # a frame of a slab that does not say so
    BAD_CACHED = 11             # more objects at hand than slabs have in use
    BAD_LARGE_PAGES = 12        # kmalloc()'s own pages differ from their counter
    NO_ROOM_TO_CHECK = 13       # the host has no memory

cdef struct slab_finding:
    int what                    # SLAB_VALID or ...
    kmem_cache* cache           # NULL for the machine as a whole
    uint64_t address            # of the slab or object
    int64_t expected
    int64_t found

# Context: not inside an area; stops every user of m while it runs.
cdef void validate_slabs(machine* m, slab_finding* ret) noexcept nogil
