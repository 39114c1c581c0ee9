"""Look at and overwrite the bytes of slab objects: what tests of debugged caches share."""

from __future__ import annotations

import ctypes
import itertools

from realmem import SLAB
from realmem.slabcalc import geometry

CHECKS, ZONE, POISON, USER = (SLAB.CONSISTENCY_CHECKS, SLAB.RED_ZONE, SLAB.POISON,
                              SLAB.STORE_USER)
ALL = CHECKS | ZONE | POISON | USER
WORD = 8
TRACKS = 2 * 32                 # bytes of who allocated and who freed an object
NUMBERS = itertools.count()     # makes the names of caches unique


def put(addr, *values):
    """Store bytes."""
    for at, value in enumerate(values):
        ctypes.c_ubyte.from_address(addr + at).value = value


def bytes_at(addr, size):
    """Load bytes."""
    return ctypes.string_at(addr, size)


def layout(cache, machine):
    """Give where SLUB puts what in the objects of a cache."""
    return geometry(cache.object_size, cache.align, cache.flags, nr_cpus=machine.cpus,
                    ctor=cache.constructor is not None)
