# cython: language_level=3, cdivision=True, boundscheck=False, wraparound=False
# cython: initializedcheck=False, nonecheck=False, profile=False, linetrace=False
from libc.stdint cimport int64_t
from libc.string cimport memset

from realmem._kernel.mm_types cimport anon_vma
from realmem._kernel.percpu cimport freeze_cpu_areas, thaw_cpu_areas
from realmem._kernel.slab cimport kmem_cache_alloc, kmem_cache_free
from realmem._kernel.slab_cache cimport cache_stat, stat_cache
from realmem._kernel.slab_types cimport (
    NO_MAGAZINE, area_magazine, kmem_cache, magazine_count,
)
from realmem.types cimport GFP_NOIO, cpu_area, machine


cdef void* kernel_alloc(machine* m, int which) noexcept nogil:
    return kmem_cache_alloc(dedicated_cache(m, which), GFP_NOIO)


cdef void kernel_free(machine* m, int which, void* object) noexcept nogil:
    if object != NULL:
        kmem_cache_free(dedicated_cache(m, which), object)


cdef int64_t objects_held(kmem_cache* s) noexcept nogil:
    cdef cache_stat found
    cdef cpu_area* area
    cdef int64_t idle = 0
    cdef int nid
    freeze_cpu_areas(s.machine)
    stat_cache(s, &found)
    for nid in range(s.machine.nr_nodes):
        idle += s.nodes[nid].depot_n
    if s.slot != NO_MAGAZINE:
        area = s.machine.areas
        while area != NULL:
            idle += magazine_count(area_magazine(area, s.magazine_back))
            idle += area_magazine(area, s.magazine_back).nr_remote
            area = area.next
    thaw_cpu_areas(s.machine)
    return found.active_objs - idle


cdef void anon_vma_ctor(void* object) noexcept nogil:
    memset(object, 0, sizeof(anon_vma))
