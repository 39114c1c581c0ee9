# Copy-on-write of 64 KiB at a time.  Signal-safe.
from realmem._kernel.vm_fault cimport vm_fault

# Copy the 64 KiB around a store to a shared page, where the VMA may have folios of that size and
# every page of it would need a copy.
# Preconditions: mm.lock held; f's entry is no huge one's.
# Returns: 0, the fault is served; -1 with nothing changed.
cdef int cow_block_fault(vm_fault* f) noexcept nogil
