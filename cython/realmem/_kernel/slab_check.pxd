# The bytes around and inside the objects of debugged caches: set, and checked.  Signal-safe.
# Mirrors mm/slub.c (Linux 6.18): init_object(), check_object(), check_slab(), on_freelist().
#
# Of `size` bytes an object has, in this order:
#     red_left_pad    left red zone, RED_ZONE
#     object_size     poison while it is free, POISON; the free pointer in its middle, unless
#                     that has to stand behind it
#     to `inuse`      right red zone, RED_ZONE; else padding, POISON
#     one word        the free pointer, where it stands outside
#     two tracks      who allocated it, who freed it, STORE_USER
#     one word        bytes asked for, STORE_USER of kmalloc()'s caches
#     the rest        padding, POISON
from libc.stdint cimport uint32_t, uint64_t

from realmem._kernel.slab_log cimport track
from realmem._kernel.slab_types cimport kmem_cache, slab

# include/linux/poison.h
cdef enum:
    SLUB_RED_INACTIVE = 0xBB
    SLUB_RED_ACTIVE = 0xCC
    POISON_INUSE = 0x5A
    POISON_FREE = 0x6B
    POISON_END = 0xA5

cdef enum:
    TRACK_ALLOC = 0
    TRACK_FREE = 1
    FROM_PYTHON = 0             # track.addr

# Write a new slab's padding, red zones, poison and empty tracks.
cdef void setup_slab_debug(kmem_cache* s, slab* sl) noexcept nogil

# Write an object's red zones, for SLUB_RED_*, and poison.
cdef void init_object(const kmem_cache* s, void* object, unsigned char val) noexcept nogil

# Note who allocated or freed an object, TRACK_*, where the cache keeps that; and give the note.
cdef void set_track(const kmem_cache* s, void* object, int which, uint64_t addr,
                    uint32_t handle) noexcept nogil
cdef track* get_track(const kmem_cache* s, void* object, int which) noexcept nogil

# Whether objects remember what was asked for; that, or object_size where they don't.
cdef bint has_orig_size(const kmem_cache* s) noexcept nogil
cdef void set_orig_size(const kmem_cache* s, void* object, uint64_t bytes) noexcept nogil
cdef uint64_t get_orig_size(const kmem_cache* s, void* object) noexcept nogil
# An object in use is from now on one of `bytes`, and its zone begins behind them.
cdef void resize_object(const kmem_cache* s, void* object, uint64_t bytes) noexcept nogil

# Whether an object of the slab starts there, or it is NULL.
cdef bint check_valid_pointer(const kmem_cache* s, const slab* sl,
                              const void* object) noexcept nogil

# Each returns whether all is well; what is not is logged, and repaired.
# Preconditions: nobody else changes the slab: its node's list_lock is held, or it is in no list.
cdef bint check_object(kmem_cache* s, slab* sl, void* object, unsigned char val) noexcept nogil
cdef bint check_slab(kmem_cache* s, slab* sl) noexcept nogil
# Whether an object is on the free list; with NULL, whether that is sound: it may be cut, and
# counts corrected, after which the slab may belong on another list.
cdef bint on_freelist(kmem_cache* s, slab* sl, const void* search) noexcept nogil

# A slab that is empty goes: its objects must be as they were freed.
cdef void check_empty_slab(kmem_cache* s, slab* sl) noexcept nogil

# A finding about an object, with its bytes; of a slab, with two numbers: slab_log_note().
cdef void object_err(kmem_cache* s, slab* sl, void* object, int what) noexcept nogil
# The repair of an object, or what was not done with it.
cdef void object_fix(kmem_cache* s, slab* sl, const void* object, int what) noexcept nogil
