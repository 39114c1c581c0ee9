"""Machine(debug=1): what changes of VMAs come to is compared with what was planned."""

from __future__ import annotations

import pytest
from fake_pages import ANON, RW, P

from realmem.errors import InvariantError
from realmem.layout import MAP_FIXED, MAP_GROWSDOWN, PROT_READ
from realmem.machine import Machine
from realmem.mm.draft import DATA, EXEC, LOCKED, STACK, TOTAL


@pytest.mark.parametrize("which", [TOTAL, DATA, EXEC, STACK, LOCKED])
def test_a_wrong_account_is_found(real, which):
    p = real
    a = p.mmap(None, 4 * P, RW, ANON)
    before = p.mm.core.counters

    def forgetful(plan):
        plan.unmap(a, a + P)
        plan.deltas[which] += 1

    with pytest.raises(InvariantError, match=f"pid {p.pid}: a change was to make total_vm"):
        p.mm.change(forgetful)
    # It was made all the same, and the kernel side's books are right: machine.check() follows.
    assert p.mm.core.counters == (before[0] - 1, before[1] - 1, *before[2:])
    assert p.find_vma(a).start == a + P
    p.munmap(a, 4 * P)


def test_it_is_not_looked_for_otherwise():
    with Machine(nodes=1, memory="32M", window="1G") as machine:
        p = machine.spawn()
        p.mm.change(lambda plan: plan.deltas.__setitem__(TOTAL, 7) or plan.set_brk(p.mm.start_brk))
        p.mmap(None, P, RW, ANON)
        machine.check()


def test_stacks_that_grow_meanwhile_confuse_nobody(real):
    p = real
    a = p.mmap(None, 4 * P, RW, ANON | MAP_GROWSDOWN)
    for i in range(1, 9):
        p.write(a - i * P, b"x")                # a fault counts pages, too
        p.mmap(p.mm.low + (i << 20), P, PROT_READ, ANON | MAP_FIXED)
        p.mprotect(a, P, PROT_READ if i % 2 else RW)
    assert p.mm.core.counters[3] == 12
