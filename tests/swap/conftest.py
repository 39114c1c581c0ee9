"""Machines with a swap file, by each backend."""

from __future__ import annotations

import pytest
from backends import BACKENDS, needs_backend

import realmem as rm


@pytest.fixture(params=BACKENDS)
def machine(request, tmp_path):
    needs_backend(request.param)
    with rm.Machine(1, "16M", window="1G", faults=request.param, debug=1) as machine:
        machine.spawn().exit()          # whose paging stays
        machine.swapon(tmp_path / "swap", size=64 << 20)
        yield machine


@pytest.fixture
def p(machine):
    """Give a process; whatever the test did, the machine is whole, and the swap area empty."""
    before = free_pages(machine)
    process = machine.spawn()
    yield process
    machine.check()
    for each in list(machine.processes.values()):
        each.exit()
    machine.check()
    assert machine._paging.mmu.swap_counts[1] == machine._paging.mmu.swap_counts[0]
    assert machine._paging.mmu.swap_counts[2] == 0
    assert free_pages(machine) >= before


def free_pages(machine):
    """Count free pages, where no list and no slab keeps any that could be free."""
    machine.drop_caches(2)
    machine.drain_all_pages()
    return machine.nodes[0].free_pages
