# A node's pages by how lately they were used: anonymous ones and those of files, each on an
# active and an inactive list, and what cannot be evicted.  Signal-safe.
#
# No list holds a reference.  A page enters by one exchange of its flags, which asks that it still
# is what lists hold (LRU_HELD) and sets PG_lru; who takes those flags away in turn sees
# PG_lru and takes the page out.  So one that comes and goes while it waits in its thread's area
# never meets the lock, and what waits there may be anything by the time that it is looked at.
from libc.stdint cimport int64_t, uint64_t

from realmem._kernel.mm_types cimport address_space, anon_vma, mmu, vm_area_struct
from realmem.types cimport page

# Empty lists for every node.  Preconditions: u.m is the machine.
cdef void lru_init(mmu* u) noexcept nogil

# A new page is to enter, inactive.  Mirrors: mm/swap.c:folio_add_lru().
cdef void lru_add(mmu* u, page* p) noexcept nogil
# All that wait do so now.  Mirrors: lru_add_drain_all().
cdef void lru_add_drain_all(mmu* u) noexcept nogil

# Where swap areas are in use a page may be found in the swap cache and mapped as its last mapping
# goes: whose it is changes under its list's lock, with the count that says so.
# One that was swapped is mapped once more.  Returns: whether it is the first mapping.
cdef bint lru_owned(mmu* u, page* p, const vm_area_struct* vma, uint64_t index) noexcept nogil
# One that nobody maps is nobody's; unless it is in the swap cache, it is anonymous no more.
cdef void lru_disowned(mmu* u, page* p) noexcept nogil

# Take a page out that `was` PG_lru as its PG_anon, PG_shmem or PG_file went.
cdef void lru_del(mmu* u, page* p, uint64_t was) noexcept nogil

# Move a page that is still on one to the list that the flags say: PG_active, PG_unevictable.
cdef void lru_set(mmu* u, page* p, uint64_t flags) noexcept nogil

# A page that reclaim looks at next.  It may have become another's since: who maps it, or has it
# in its object, is asked under their locks.
cdef struct lru_hint:
    page* page
    address_space* object       # what it is a page of, if it is no process's own; lru_keep()t
    anon_vma* anon              # otherwise, unless nobody maps it; with a reference
    uint64_t index

# Keep an object for a moment: a file is `borrowed`, another has a reference more.
# Preconditions: it has a page on a list whose lock is held, or a VMA that is locked maps it.
# Returns: whether it could be; else it is about to go.
cdef bint lru_keep(address_space* object) noexcept nogil

# The n pages that were used longest ago, of zones up to a kind, which move to the front of their
# list, as do those of other zones on the way.
# Returns: how many there were.
cdef int64_t lru_oldest(mmu* u, int nid, int which, int highest, lru_hint* hints_ret,
                        int64_t n) noexcept nogil
