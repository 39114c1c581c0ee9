"""A machine whose kmalloc caches are checked, and caches to corrupt."""

from __future__ import annotations

import pytest
from slab_bytes import NUMBERS

import realmem as rm


@pytest.fixture(scope="module")
def machine():
    with rm.Machine(nodes=1, memory="64M", slab_debug="ZU,kmalloc-32;FZPU,kmalloc-1*") as made:
        yield made


@pytest.fixture
def make(machine, request):
    """Make caches named for the test; all of them go afterwards."""
    made = []

    def make(size, flags, **options):
        cache = machine.kmem_cache_create(f"{request.node.name[:30]}-{next(NUMBERS)}", size,
                                          flags=flags, **options)
        made.append(cache)
        return cache
    yield make
    machine.check()
    for cache in made:
        cache.shrink()
        if cache.num_objs == 0:
            cache.destroy()
