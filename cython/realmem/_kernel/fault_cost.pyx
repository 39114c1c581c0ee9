# cython: language_level=3, cdivision=True, boundscheck=False, wraparound=False
# cython: initializedcheck=False, nonecheck=False, profile=False, linetrace=False
from libc.stdint cimport int64_t, uint32_t, uint64_t

from realmem._kernel.mm_types cimport fault_cost, mmu, pte_pfn
from realmem._kernel.percpu cimport this_node
from realmem._kernel.vm_fault cimport (
    KIND_ANON, NR_FAULT_PARTS, PART_ALLOC, PART_TOTAL, PART_VMA, vm_fault,
)
from realmem.compiler cimport RELAXED, atomic64_add_return, fls
from realmem.types cimport page_zone, pfn_to_page

cdef extern from *:
    """
    /* Two processes that meet here may lose one of their counts: six locked additions a fault
       would cost what the part that they count does. */
    #define rm_raise_bucket(p) \
        __atomic_store_n((p), __atomic_load_n((p), __ATOMIC_RELAXED) + 1, __ATOMIC_RELAXED)
    """
    void raise_bucket "rm_raise_bucket"(uint32_t* p) noexcept nogil


cdef void fault_account(vm_fault* f) noexcept nogil:
    cdef mmu* u = f.mm.mmu
    cdef int cpu_nid = this_node(u.m)
    cdef int mem_nid = page_zone(u.m, pfn_to_page(u.m, pte_pfn(f.pte[0]))).nid
    cdef fault_cost* cost = u.costs + slot_of(u, f, cpu_nid, mem_nid)
    cdef int part
    atomic64_add_return(&cost.count, 1, RELAXED)
    if not f.timed:
        return
    f.parts[PART_TOTAL] = f.last - f.start
    for part in range(PART_ALLOC if f.late else PART_VMA, NR_FAULT_PARTS):
        raise_bucket(&cost.buckets[part][bucket_of(f.parts[part])])


# By way, kind and order, the CPU's node and the memory's.
cdef inline int64_t slot_of(const mmu* u, const vm_fault* f, int cpu_nid,
                            int mem_nid) noexcept nogil:
    cdef int64_t row = f.kind
    cdef int64_t nodes = u.m.nr_nodes
    if f.kind == KIND_ANON:
        row += f.order
    elif f.kind > KIND_ANON:
        row += NR_COST_ORDERS - 1
    row += NR_COST_KINDS if f.raw else 0
    return (row * nodes + cpu_nid) * nodes + mem_nid


cdef inline int bucket_of(uint64_t cycles) noexcept nogil:
    cdef int shift
    if cycles < LINEAR_BUCKETS:
        return <int>cycles
    shift = <int>fls(cycles) - 4
    return min(LINEAR_BUCKETS + (shift << 3) + <int>((cycles >> (shift + 1)) & 7),
               <int>NR_BUCKETS - 1)
