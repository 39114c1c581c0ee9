"""Files on disk, and processes that map them, by each backend."""

from __future__ import annotations

import pytest
from backends import BACKENDS, needs_backend

import realmem as rm


@pytest.fixture(scope="module", params=BACKENDS)
def machine(request):
    needs_backend(request.param)
    with rm.Machine(1, "32M", window="1G", faults=request.param, debug=1) as machine:
        machine.spawn().exit()          # whose paging stays
        yield machine


@pytest.fixture
def p(machine):
    """Give a process; whatever the test did, the machine is whole, and keeps no file."""
    before = free_pages(machine)
    process = machine.spawn()
    yield process
    machine.check()
    for each in list(machine.processes.values()):
        each.exit()
    machine.check()
    assert free_pages(machine) >= before
    assert not machine._paging.mmu.inodes


def free_pages(machine):
    """Count free pages, where no list and no slab keeps any that could be free."""
    machine.drop_caches(2)
    machine.drain_all_pages()
    return machine.nodes[0].free_pages


@pytest.fixture
def path(tmp_path):
    """Give a file of three and a half pages, each byte its page's number plus one."""
    where = tmp_path / "file"
    where.write_bytes(b"".join(bytes([i + 1]) * 4096 for i in range(3)) + b"\4" * 2048)
    return where
