# What the checks of slab caches found: a ring of findings that Python empties.  Signal-safe.
# A finding keeps the bytes as they were, since those are restored at once.
from libc.stdint cimport int32_t, int64_t, uint8_t, uint16_t, uint32_t, uint64_t

from realmem._kernel.slab_types cimport kmem_cache, slab, slab_state
from realmem.compiler cimport spinlock
from realmem.types cimport machine

cdef enum:
    NR_FINDINGS = 64
    NR_SECTIONS = 4
    SECTION_BYTES = 4096        # of each at most, as print_trailer() shows of an object

# What was found, and what was done about it.  Each counts as one error, as Linux counts them.
cdef enum:
    # Bytes of an object that are not what they were set to.
    LEFT_REDZONE = 1
    RIGHT_REDZONE = 2
    KMALLOC_REDZONE = 3         # between what was asked for and what the cache gives
    ALIGNMENT_PADDING = 4
    POISON_OVERWRITTEN = 5
    END_POISON = 6
    OBJECT_PADDING = 7
    SLAB_PADDING = 8            # behind a slab's last object
    # An object.
    FREEPOINTER_CORRUPT = 9     # its free pointer leads nowhere
    FREECHAIN_CORRUPT = 10      # the same, met on the way along the free list
    FREELIST_POINTER = 11       # what was to be given out is no object
    ALREADY_FREE = 12
    WRONG_CACHE = 13            # freed to another cache; that is in `other`
    # A slab.
    INVALID_POINTER = 14        # the address that was freed is no object's
    FREELIST_CORRUPT = 15       # its first free object is none
    FREELIST_CYCLE = 16
    WRONG_NR_OBJECTS = 17       # found, expected
    WRONG_OBJECT_COUNT = 18     # found, expected
    TOO_MANY_OBJECTS = 19       # found, most
    TOO_MANY_IN_USE = 20        # found, most
    SLAB_DISABLED = 21
    NOTHING_ALLOCATED = 22      # an object is freed, and none is in use
    WRONG_NR_PARTIAL = 23       # found, expected
    OBJECTS_REMAINING = 24      # when the cache was to be destroyed
    NO_SLAB = 25                # what was freed lies in no slab
    # Repairs.
    FIX_RESTORED = 32           # start, end, expected: bytes of the kind `found`
    FIX_FREELIST_CLEARED = 33
    FIX_NR_OBJECTS = 34
    FIX_OBJECT_COUNT = 35
    FIX_ALL_USED = 36
    FIX_NOT_FREED = 37          # object
    # No error: an object that belongs to OBJECTS_REMAINING.
    REMAINING_OBJECT = 64

# Who allocated or freed an object, behind it in caches with STORE_USER.  Linux's struct track.
cdef struct track:
    uint64_t addr               # of the call; 0: from Python
    uint32_t handle             # of the Python stack (_core/stack_depot.pyx); 0: none
    int32_t cpu
    int32_t pid                 # of the thread; 0: nobody yet
    uint32_t pad
    uint64_t when               # milliseconds

cdef enum:
    SECTION_BEFORE = 0          # 16 bytes in front of the object
    SECTION_REDZONE = 1
    SECTION_OBJECT = 2
    SECTION_PADDING = 3

cdef struct finding_section:
    uint64_t address
    uint32_t bytes
    uint16_t kind               # SECTION_*
    uint16_t slot               # of finding.dump

cdef struct finding:
    kmem_cache* cache
    const kmem_cache* other
    int32_t what
    int32_t nr_sections
    uint64_t when               # milliseconds
    uint64_t object             # 0: it is about the slab
    uint64_t free_pointer       # the object's
    bint is_object              # object, free_pointer and tracks mean something
    bint tracked
    track tracks[2]
    uint64_t slab               # its struct page; 0: there is none
    uint64_t slab_flags
    uint64_t base               # address of the slab
    uint64_t freelist
    uint32_t objects
    uint32_t inuse
    uint64_t start              # first wrong byte, last wrong byte
    uint64_t end
    int64_t found
    int64_t expected
    finding_section sections[4]     # NR_SECTIONS
    uint8_t dump[4][4096]           # NR_SECTIONS, SECTION_BYTES

cdef struct slab_log:
    spinlock lock               # below every list_lock
    uint32_t first
    uint32_t count
    uint64_t lost               # found while the ring was full
    finding ring[64]            # NR_FINDINGS

# Make room for findings, once: 0 or -ENOMEM.  Not signal-safe.
cdef int slab_log_init(slab_state* state) noexcept nogil
cdef void slab_log_exit(slab_state* state) noexcept nogil

# Enter a finding, filled in as far as cache, what, slab and counts go: the caller adds the rest
# and calls slab_log_end().  NULL when the ring is full.  Errors are counted in any case.
cdef finding* slab_log_begin(kmem_cache* s, int what, const slab* sl) noexcept nogil
cdef void slab_log_end(kmem_cache* s) noexcept nogil
# ... where there is nothing to add.
cdef void slab_log_note(kmem_cache* s, int what, const slab* sl, int64_t found,
                        int64_t expected) noexcept nogil

# Keep up to SECTION_BYTES of what stands at an address; nothing for 0 bytes.
cdef void add_section(finding* f, int kind, const void* where, uint64_t bytes) noexcept nogil

# Move the oldest finding to ret[0]: whether there was one.
cdef bint slab_log_take(machine* m, finding* ret) noexcept nogil
# How many found no room since the last call.
cdef uint64_t slab_log_lost(machine* m) noexcept nogil
cdef bint slab_log_waiting(const machine* m) noexcept nogil

# Milliseconds of a clock that never goes back; a jiffy here.
cdef uint64_t jiffies() noexcept nogil
