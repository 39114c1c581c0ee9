# cython: language_level=3, cdivision=True
"""Objects of debugged caches, given to Python and taken back; what the checks found."""
from libc.stdint cimport uint32_t, uint64_t

from realmem._core.slabs cimport SlabAllocator
from realmem._kernel.slab_check cimport FROM_PYTHON
from realmem._kernel.slab_debug cimport (
    cache_of, debug_alloc, debug_free, debug_refuse, slab_user,
)
from realmem._kernel.slab_log cimport (
    finding, slab_log_lost, slab_log_take, slab_log_waiting, track,
)
from realmem._kernel.slab_types cimport SLAB_DEBUG_FLAGS, SLAB_STORE_USER, kmem_cache

from realmem.errors import AllocatorError


cdef uint32_t caller(SlabAllocator allocator, const kmem_cache* s) except? 0xFFFFFFFF:
    cdef uint32_t handle
    if s == NULL or not s.flags & SLAB_STORE_USER:
        return 0
    handle = allocator.depot.save()
    allocator.usable()              # again: Python code ran
    return handle


cdef inline slab_user asker(uint32_t handle):
    cdef slab_user who
    who.addr = FROM_PYTHON
    who.handle = handle
    who.refused = 0
    return who


cdef void* alloc_checked(SlabAllocator allocator, kmem_cache* s, uint32_t gfp, int nid,
                         uint64_t orig_size, uint32_t handle) except? NULL:
    cdef slab_user who = asker(handle)
    cdef void* object
    object = debug_alloc(s, gfp, nid, orig_size, &who)
    if who.refused:
        if object != NULL:
            debug_free(s.machine, s, object, &who)
        name = allocator.name_at(s)
        raise AllocatorError(
            f"corruption: free memory of cache {name!r} was written to\n"
            f"{allocator.collect(name)}")
    if slab_log_waiting(s.machine):
        allocator.collect(None)
    return object


cdef int free_checked(SlabAllocator allocator, kmem_cache* s, uint64_t addr,
                      uint32_t handle) except -1:
    cdef slab_user who = asker(handle)
    cdef kmem_cache* owner = cache_of(allocator.m, <void*>addr)
    try:
        allocator.take_back(s, addr)
    except AllocatorError as error:
        if (s if s != NULL else owner) == NULL:
            raise
        name = allocator.name_at(s if s != NULL else owner)
        debug_refuse(allocator.m, s, <void*>addr)
        raise AllocatorError(f"{error}\n{allocator.collect(name)}".rstrip()) from None
    debug_free(allocator.m, s, <void*>addr, &who)
    if who.refused:
        allocator.hand_out(<void*>addr)
        name = allocator.name_at(owner)
        raise AllocatorError(
            f"corruption: object {addr:#x} of cache {name!r} is not freed\n"
            f"{allocator.collect(name)}")
    if slab_log_waiting(allocator.m):
        allocator.collect(None)
    return 0


cdef bint free_debugged(SlabAllocator allocator, uint64_t addr) except -1:
    cdef kmem_cache* s = cache_of(allocator.m, <void*>addr)
    cdef uint32_t handle
    if s == NULL or not s.flags & SLAB_DEBUG_FLAGS:
        return False
    handle = caller(allocator, s)
    free_checked(allocator, NULL, addr, handle)
    return True


def take_findings(SlabAllocator allocator not None):
    """
    Empty the ring of findings.

    :return: (a list of dicts by the fields of _kernel/slab_log.pxd's struct finding, the oldest
        first; how many were lost since the ring was full).  Of a cache there is its name,
        object_size and flags; of a track None where nobody has been yet, else (address, frames,
        CPU, thread, age in ms); of a section (kind, address, bytes).
    """
    cdef finding found
    findings = []
    allocator.pages.alive()
    while slab_log_take(allocator.m, &found):
        row = {
            "what": found.what, "cache": allocator.name_at(found.cache), "object": found.object,
            "is_object": bool(found.is_object), "free_pointer": found.free_pointer,
            "slab": found.slab, "slab_flags": found.slab_flags, "base": found.base,
            "freelist": found.freelist, "objects": found.objects, "inuse": found.inuse,
            "start": found.start, "end": found.end, "found": found.found,
            "expected": found.expected, "tracks": (None, None), "other": None,
            "sections": [
                (found.sections[i].kind, found.sections[i].address,
                 (<const char*>found.dump[found.sections[i].slot])[:found.sections[i].bytes])
                for i in range(found.nr_sections)
            ],
        }
        if found.other != NULL:
            row["other"] = allocator.name_at(<kmem_cache*>found.other)
        if found.tracked:
            row["tracks"] = (describe(allocator, &found.tracks[0], found.when),
                             describe(allocator, &found.tracks[1], found.when))
        findings.append(row)
        allocator.pages.alive()     # again: the collector may have run
    return findings, slab_log_lost(allocator.m)


cdef object describe(SlabAllocator allocator, const track* t, uint64_t now):
    if t.pid == 0:
        return None
    return t.addr, allocator.depot.fetch(t.handle), t.cpu, t.pid, now - t.when
