# What faults cost, in cycles: a histogram for each part, by what the fault came to and between
# which nodes.  Signal-safe.
from libc.stdint cimport uint64_t

from realmem._kernel.mm_types cimport fault_cost, mmu
from realmem._kernel.vm_fault cimport vm_fault

# Bucket b holds b itself below 16, and above it an eighth of a power of two: what a histogram
# says is right to 12 % up to 2^36 cycles.
cdef enum:
    LINEAR_BUCKETS = 16
    NR_BUCKETS = 272            # 16 + 8 * 32
    NR_COST_ORDERS = 10         # of an anonymous fault; others have order 0
    # By what it came to: KIND_ZERO_PAGE, KIND_ANON by order, the rest, the huge zero page.
    NR_COST_KINDS = 17          # NR_FAULT_KINDS - 1 + NR_COST_ORDERS + 1
    NR_COST_WAYS = 2            # software, raw

# mmu.costs[nid] is the row of what happened on a node's CPUs, by way, by kind and order, by the
# memory's node.  It is there from the first such fault on: all rows of 64 nodes take 0.9 GB of
# addresses, and a process that may have no more than it has needs them for its window.
cdef inline uint64_t cost_row_bytes(const mmu* u) noexcept nogil:
    return <uint64_t>NR_COST_WAYS * NR_COST_KINDS * u.nr_fds * sizeof(fault_cost)

# Note a fault that was served; not if it is the first on its node and the host refuses the row.
# Preconditions: mm.lock held; f.pte is set.
cdef void fault_account(vm_fault* f) noexcept nogil

# Give the rows back.
# Preconditions: no process is left.
cdef void fault_costs_free(mmu* u) noexcept nogil
