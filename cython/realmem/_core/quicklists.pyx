# cython: language_level=3
"""The face of the quicklists: what ``machine.quicklists`` is."""
from libc.stdint cimport int64_t

from realmem._core.machine cimport MachineCore
from realmem._kernel.quicklist cimport (
    quicklist_total_size, quicklist_trim, quicklist_trim_all,
)

NO_LIMIT = 1 << 62


cdef class Quicklists:
    """
    The per-CPU lists of zeroed pages that feed a machine's page tables.

    Compare mm/quicklist.c, which Linux had until 5.2.

    :param core: the machine.
    """

    cdef MachineCore core

    def __cinit__(self, MachineCore core not None):
        self.core = core

    @property
    def pages(self):
        """Pages on all lists."""
        self.core.check_alive()
        return quicklist_total_size(self.core.m)

    def trim(self, min_pages=None, max_free=None):
        """
        Give pages back to the page allocator.

        With no argument every list is emptied.  With either, the calling CPU's list alone is
        shortened as quicklist_trim() does: when it is longer than ``min_pages``, down to that
        or to the CPU's share of a sixteenth of its node's free pages, whichever is more.

        :param min_pages: pages to keep, at least; None is 0.
        :param max_free: pages to give back, at most; None is no limit.
        :return: pages given back.
        :raises ValueError: a negative number.
        """
        cdef int64_t low = 0 if min_pages is None else max(-1, min(min_pages, NO_LIMIT))
        cdef int64_t most = NO_LIMIT if max_free is None else max(-1, min(max_free, NO_LIMIT))
        cdef int64_t freed
        cdef bint everything = min_pages is None and max_free is None
        if low < 0 or most < 0:
            raise ValueError(f"min_pages {min_pages}, max_free {max_free}: not below 0")
        self.core.check_alive()
        self.core.busy += 1
        with nogil:
            if everything:
                freed = quicklist_trim_all(self.core.m)
            else:
                freed = quicklist_trim(self.core.m, low, most)
        self.core.busy -= 1
        return freed

    def __repr__(self):
        return "<realmem.Quicklists>"
