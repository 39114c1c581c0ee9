# cython: language_level=3
"""Making attempts fail on request."""
from libc.stdint cimport int64_t, uint64_t

from realmem._core.machine cimport MachineCore
from realmem._kernel.fault_inject cimport set_fault_attr
from realmem.types cimport fault_attr

# By their numbers in types.pxd, those that are there.
POINTS = ("page_alloc",)


cdef class Injection:
    """
    Attempts at one point fail while this is entered; what was set before comes back after.

    Compare lib/fault-inject.c:should_fail_ex() and /proc/PID/fail-nth.

    :param core: the machine's.
    :param point: index into POINTS.
    :param nth: the attempt that fails, counted from 1; 0 means none by number.
    :param probability: of each other attempt to fail, 0 to 1.
    :param times: so many failures at most; -1 means no limit.
    :param seed: of the random choice.
    """

    cdef MachineCore core
    cdef int point
    cdef fault_attr wanted
    cdef fault_attr before
    cdef bint entered

    def __cinit__(self, MachineCore core not None, int point, uint64_t nth, double probability,
                  int64_t times, uint64_t seed):
        if not 0 <= point < len(POINTS) or not 0 <= probability <= 1:
            raise ValueError("point or probability is out of range")
        self.core = core
        self.point = point
        self.wanted.active = 1
        self.wanted.nth = nth
        self.wanted.threshold = <uint64_t>(probability * 2.0**32)
        self.wanted.times = times
        self.wanted.random = seed

    def __enter__(self):
        self.core.alive()
        if self.entered:
            raise ValueError("this injection is entered already")
        self.before = self.core.m.faults[self.point]
        set_fault_attr(self.core.m, self.point, &self.wanted)
        self.entered = True
        return self

    def __exit__(self, *exc):
        self.entered = False
        if not self.is_alive():             # closed meanwhile: nothing left to set
            return
        self.wanted = self.core.m.faults[self.point]
        set_fault_attr(self.core.m, self.point, &self.before)

    cdef const fault_attr* now(self) except NULL:
        if self.entered and self.is_alive():
            return &self.core.m.faults[self.point]
        return &self.wanted

    cdef bint is_alive(self):
        try:
            return self.core.alive() == 0
        except ValueError:
            return False

    @property
    def attempts(self):
        """How many attempts there were."""
        return self.now().attempts

    @property
    def failures(self):
        """How many of them were made to fail."""
        return self.now().failures
