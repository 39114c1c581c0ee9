# Recount of the vmalloc area, for machine.check().  It assumes nothing and changes nothing.
from libc.stdint cimport int64_t

from realmem._kernel.mm_finding cimport mm_finding
from realmem._kernel.mm_types cimport vmap_space

# Recount address ranges, entries, tables, host VMAs and each area's frames.
# Preconditions: s.mm.lock held.
# Returns: whether all is well; page-table pages below the PGD's entry in tables_ret, frames
# that areas own in frames_ret.
cdef bint validate_vmap_locked(vmap_space* s, mm_finding* finding_ret, int64_t* tables_ret,
                               int64_t* frames_ret) noexcept nogil
