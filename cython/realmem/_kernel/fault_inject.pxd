# Attempts that are made to fail on request.  Compare lib/fault-inject.c (Linux 6.18).
from libc.stdint cimport uint64_t

from realmem.types cimport fault_attr, machine

# Whether this attempt is one that fails; counts it.  Signal-safe.
# Mirrors: should_fail_ex().
cdef bint should_fail(fault_attr* attr) noexcept nogil

# Change what fails at a point, with every per-CPU area frozen, so that no fast path misses it.
cdef void set_fault_attr(machine* m, int point, const fault_attr* wanted) noexcept nogil
