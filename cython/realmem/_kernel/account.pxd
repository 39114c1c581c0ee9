# How many pages an address space has promised, by kind.
from libc.stdint cimport int64_t, uint64_t

from realmem._kernel.mm_types cimport (
    VM_ACCOUNT, VM_EXEC, VM_GROWSDOWN, VM_LOCKED, VM_SHARED, VM_WRITE, mm_core,
)

# A VMA of such flags has so many pages more, or fewer.
# Mirrors: mm/vma.c:vm_stat_account(), mm/internal.h:is_data_mapping() and its kin.
cdef inline void vm_stat_account(mm_core* core, uint64_t flags, int64_t pages) noexcept nogil:
    core.total_vm += pages
    if core.total_vm > core.hiwater_vm:
        core.hiwater_vm = core.total_vm
    if flags & (VM_EXEC | VM_WRITE | VM_GROWSDOWN) == VM_EXEC:
        core.exec_vm += pages
    elif flags & VM_GROWSDOWN:
        core.stack_vm += pages
    elif flags & (VM_WRITE | VM_SHARED) == VM_WRITE:
        core.data_vm += pages
    if flags & VM_LOCKED:
        core.locked_vm += pages
    if flags & VM_ACCOUNT:
        core.accounted += pages
