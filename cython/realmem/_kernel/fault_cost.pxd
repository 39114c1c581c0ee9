# What faults cost, in cycles: a histogram for each part, by what the fault came to and between
# which nodes.  Signal-safe.
from libc.stdint cimport int64_t

from realmem._kernel.vm_fault cimport vm_fault

# Bucket b holds b itself below 16, and above it an eighth of a power of two: what a histogram
# says is right to 12 % up to 2^36 cycles.
cdef enum:
    LINEAR_BUCKETS = 16
    NR_BUCKETS = 272            # 16 + 8 * 32
    NR_COST_ORDERS = 10         # of an anonymous fault; others have order 0
    # A row of slots: KIND_ZERO_PAGE, KIND_ANON by order, and the rest.
    NR_COST_KINDS = 15          # NR_FAULT_KINDS - 1 + NR_COST_ORDERS
    NR_COST_WAYS = 2            # software, raw

# How many slots a machine of so many nodes takes.
cdef inline int64_t nr_cost_slots(int nr_nodes) noexcept nogil:
    return <int64_t>NR_COST_WAYS * NR_COST_KINDS * nr_nodes * nr_nodes

# Note a fault that was served.
# Preconditions: mm.lock held; f.pte is set.
cdef void fault_account(vm_fault* f) noexcept nogil
