# cython: language_level=3, cdivision=True, boundscheck=False, wraparound=False
# cython: initializedcheck=False, nonecheck=False, profile=False, linetrace=False
from libc.stdint cimport int64_t, uint32_t, uint64_t
from posix.mman cimport PROT_READ, PROT_WRITE

from realmem._kernel.host_calls cimport host_reserve, host_unmap
from realmem._kernel.mm_types cimport fault_cost, mmu, pte_pfn
from realmem._kernel.percpu cimport this_node
from realmem._kernel.vm_fault cimport (
    KIND_ANON, NR_FAULT_PARTS, PART_ALLOC, PART_TOTAL, PART_VMA, vm_fault,
)
from realmem.compiler cimport RELAXED, atomic64_add_return, fls, likely, unlikely
from realmem.types cimport page_zone, pfn_to_page

cdef extern from *:
    """
    #include <stdint.h>
    /* Two processes that meet here may lose one of their counts: six locked additions a fault
       would cost what the part that they count does. */
    #define rm_raise_bucket(p) \
        __atomic_store_n((p), __atomic_load_n((p), __ATOMIC_RELAXED) + 1, __ATOMIC_RELAXED)
    #define rm_row(p) __atomic_load_n((p), __ATOMIC_ACQUIRE)
    /* Another process may have been faster: then its row is the one. */
    static inline int rm_publish_row(uint64_t *p, uint64_t row)
    {
        uint64_t none = 0;
        return __atomic_compare_exchange_n(p, &none, row, 0, __ATOMIC_ACQ_REL,
                                           __ATOMIC_RELAXED);
    }
    """
    void raise_bucket "rm_raise_bucket"(uint32_t* p) noexcept nogil
    uint64_t load_row "rm_row"(uint64_t* p) noexcept nogil
    bint publish_row "rm_publish_row"(uint64_t* p, uint64_t row) noexcept nogil


cdef void fault_account(vm_fault* f) noexcept nogil:
    cdef mmu* u = f.mm.mmu
    cdef int mem_nid = page_zone(u.m, pfn_to_page(u.m, pte_pfn(f.pte[0]))).nid
    cdef fault_cost* cost = row_of(u, this_node(u.m))
    cdef int part
    if unlikely(cost == NULL):
        return
    cost += slot_of(u, f, mem_nid)
    atomic64_add_return(&cost.count, 1, RELAXED)
    if not f.timed:
        return
    f.parts[PART_TOTAL] = f.last - f.start
    for part in range(PART_ALLOC if f.late else PART_VMA, NR_FAULT_PARTS):
        raise_bucket(&cost.buckets[part][bucket_of(f.parts[part])])


cdef void fault_costs_free(mmu* u) noexcept nogil:
    cdef int nid
    for nid in range(u.nr_fds):
        if u.costs[nid] != 0:
            host_unmap(u.costs[nid], cost_row_bytes(u))
            u.costs[nid] = 0


cdef inline fault_cost* row_of(mmu* u, int nid) noexcept nogil:
    cdef uint64_t row = load_row(&u.costs[nid])
    return <fault_cost*>(row if likely(row != 0) else make_row(u, nid))


# Returns: its address, or 0 when the host refuses.
cdef uint64_t make_row(mmu* u, int nid) noexcept nogil:
    cdef uint64_t row = host_reserve(cost_row_bytes(u), PROT_READ | PROT_WRITE)
    if row != 0 and not publish_row(&u.costs[nid], row):
        host_unmap(row, cost_row_bytes(u))
    return load_row(&u.costs[nid])


cdef inline int64_t slot_of(const mmu* u, const vm_fault* f, int mem_nid) noexcept nogil:
    cdef int64_t kind = f.kind
    if f.kind == KIND_ANON:
        kind += f.order
    elif f.kind > KIND_ANON:
        kind += NR_COST_ORDERS - 1
    elif f.order != 0:
        kind = NR_COST_KINDS - 1
    return ((NR_COST_KINDS if f.raw else 0) + kind) * u.nr_fds + mem_nid


cdef inline int bucket_of(uint64_t cycles) noexcept nogil:
    cdef int shift
    if cycles < LINEAR_BUCKETS:
        return <int>cycles
    shift = <int>fls(cycles) - 4
    return min(LINEAR_BUCKETS + (shift << 3) + <int>((cycles >> (shift + 1)) & 7),
               <int>NR_BUCKETS - 1)
