# cython: language_level=3
"""Making attempts fail on request."""
import weakref

from libc.stdint cimport int64_t, uint64_t
from libc.string cimport memset

from realmem._core.machine cimport MachineCore
from realmem._kernel.fault_inject cimport set_fault_attr
from realmem._kernel.slab_cache cimport update_fast_objects
from realmem.types cimport INJECT_SLAB, fault_attr

# By their numbers in types.pxd, those that are there.
POINTS = ("page_alloc", "slab")

# (machine id, point) -> weak reference to the injection in force.
cdef dict innermost = {}


cdef class Injection:
    """
    Attempts at one point fail while this is entered, unless another was entered after it.

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
    cdef fault_attr wanted          # and what became of it, while it is not in force
    cdef Injection outer            # entered before this one, and not left yet
    cdef bint entered
    cdef object __weakref__

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
        cdef Injection outer
        self.core.enter()
        key, reference = (self.core.m.id, self.point), weakref.ref(self)
        self.core.alive()                   # again: the collector may have run
        if self.entered:
            raise ValueError("this injection is entered already")
        outer = in_force(key)
        if outer is not None:
            outer.wanted = self.core.m.faults[self.point]
        self.outer = outer
        innermost[key] = reference
        self.set(&self.wanted)
        self.entered = True
        return self

    cdef int set(self, const fault_attr* wanted) except -1:
        set_fault_attr(self.core.m, self.point, wanted)
        if self.point == INJECT_SLAB:
            update_fast_objects(self.core.m)
        return 0

    def __exit__(self, *exc):
        cdef Injection inner
        cdef Injection outer = self.outer
        cdef fault_attr nothing
        if not self.entered or not self.is_alive():     # closed meanwhile: nothing left to set
            self.entered = False
            return
        key, reference = (self.core.m.id, self.point), outer and weakref.ref(outer)
        self.core.alive()
        inner = in_force(key)
        if inner is self:
            self.wanted = self.core.m.faults[self.point]
            if outer is None:
                memset(&nothing, 0, sizeof(nothing))
                del innermost[key]
                self.set(&nothing)
            else:
                innermost[key] = reference
                self.set(&outer.wanted)
        # Threads do not nest theirs: one of them may leave from between two others.
        while inner is not None:
            if inner.outer is self:
                inner.outer = outer
            inner = inner.outer
        self.outer = None
        self.entered = False

    cdef const fault_attr* now(self) except NULL:
        if self.entered and self.is_alive() and in_force((self.core.m.id, self.point)) is self:
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


cdef Injection in_force(tuple key):
    reference = innermost.get(key)
    return None if reference is None else reference()
