# Copy-on-write by donation: the page stays with who writes to it, the other owner gets the copy.
# Signal-safe.
from libc.stdint cimport uint64_t

from realmem._kernel.mm_types cimport mm_struct, vm_area_struct
from realmem.types cimport page

# `old`, which pte maps for mm and the host has in its window, is shared with one other address
# space, which has nothing of it in its own: give that one `new`, a copy that was made for mm's
# VMA, and keep `old`.
# Preconditions: mm.lock held; new is mapped by no entry yet.
# Returns: whether it was done: then old is mm's alone, new is the other's, and all counts say so.
# False, with nothing changed: other owners, or they are busy or have it mapped.
cdef bint donate_copy_locked(mm_struct* mm, const vm_area_struct* vma, const uint64_t* pte,
                             page* old, page* new) noexcept nogil
