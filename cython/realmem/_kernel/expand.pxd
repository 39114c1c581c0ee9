# Stacks grow by faults below them.  Signal-safe; mm.lock held.
from libc.stdint cimport uint64_t

from realmem._kernel.mm_types cimport mm_struct, vma_slot

# Let the VMA above addr grow down to it, if it may: 0 or -ENOMEM.
# Mirrors: mm/vma.c:expand_downwards() => acct_stack_growth().
cdef int expand_stack_locked(mm_struct* mm, vma_slot* slot, uint64_t addr) noexcept nogil
