"""mmap, munmap, mprotect, mseal, brk: the running kernel and the plans, call by call."""

from __future__ import annotations

import random

import host_calls
import pytest
from fake_core import FakeCore, fake_map
from host_calls import ARENA, ARENA_END, HEAP

from realmem.layout import (
    MAP_ANONYMOUS,
    MAP_DROPPABLE,
    MAP_FIXED,
    MAP_FIXED_NOREPLACE,
    MAP_GROWSDOWN,
    MAP_LOCKED,
    MAP_NORESERVE,
    MAP_PRIVATE,
    MAP_SHARED,
    MAP_SHARED_VALIDATE,
    MAP_STACK,
    PAGE_SIZE,
    PROT_GROWSDOWN,
    PROT_NONE,
    PROT_READ,
    PROT_WRITE,
)
from realmem.machine import Machine
from realmem.mm.address_space import MemoryMap, forked_tree
from realmem.mm.brk import brk
from realmem.mm.mmap import mmap
from realmem.mm.mprotect import mprotect
from realmem.mm.mseal import mseal
from realmem.mm.munmap import munmap
from realmem.mm.vma import VM_EXEC, VM_MAYSHARE, VM_READ, VM_WRITE

P = PAGE_SIZE
PAGES = 32
RW = PROT_READ | PROT_WRITE


class Model(MemoryMap):
    """An address space on the model, its heap where the host's child has it."""

    start_brk = HEAP


class Ours:
    """The same calls by plans."""

    def __init__(self):
        self.mm = fake_map(kind=Model)

    def step(self, name, *args):
        try:
            return getattr(self, name)(*args)
        except OSError as error:
            return -error.errno

    def mmap(self, addr, length, prot, flags):
        result = mmap(self.mm, addr, length, prot, flags, None, 0)
        if not ARENA <= result < ARENA_END:
            munmap(self.mm, result, length)
            return "elsewhere"
        return result

    def munmap(self, addr, length):
        return munmap(self.mm, addr, length) or 0

    def mprotect(self, addr, length, prot):
        return mprotect(self.mm, addr, length, prot) or 0

    def mseal(self, addr, length, flags):
        return mseal(self.mm, addr, length, flags) or 0

    def brk(self, offset):
        return brk(self.mm, HEAP + offset) - HEAP

    def touch(self, addr, pages):
        for i in range(pages):
            vma = self.mm.tree.at(addr + i * P)
            if vma is None or not vma.vm_flags_word & VM_WRITE:
                return i
            self.mm.core.fault(addr + i * P, addr + (i + 1) * P)
        return pages

    def fork(self):
        core = FakeCore(self.mm.core.mmu)
        self.mm.core.fork_into(core, forked_tree(self.mm.tree))
        self.mm = Model(core, self.mm.settings)
        return 0

    def layout(self):
        return [
            [
                vma.start,
                vma.end,
                ("r" if vma.vm_flags_word & VM_READ else "-")
                + ("w" if vma.vm_flags_word & VM_WRITE else "-")
                + ("x" if vma.vm_flags_word & VM_EXEC else "-")
                + ("s" if vma.vm_flags_word & VM_MAYSHARE else "p"),
                sorted(vma.vm_flags - host_calls.IGNORED),
            ]
            for vma in self.mm.tree
        ]


class OnMemory(Ours):
    """The same on real memory: faults give anon_vmas, windows come on demand."""

    def __init__(self, machine):
        self.process = machine.spawn()
        self.mm = self.process.mm
        self.mm.core.tree = self.mm.core.tree.with_brk(HEAP)
        self.mm.__class__ = Model

    def touch(self, addr, pages):
        for i in range(pages):
            vma = self.mm.tree.at(addr + i * P)
            if vma is None or not vma.vm_flags_word & VM_WRITE:
                return i
            self.process.touch(addr + i * P, P, True)
        return pages

    def fork(self):
        self.process = self.process.fork()
        self.mm = self.process.mm
        self.mm.__class__ = Model
        return 0


KINDS = [MAP_PRIVATE] * 12 + [
    MAP_PRIVATE | MAP_NORESERVE,
    MAP_PRIVATE | MAP_GROWSDOWN,
    MAP_PRIVATE | MAP_LOCKED,
    MAP_PRIVATE | MAP_STACK,
    MAP_SHARED,
    MAP_SHARED | MAP_GROWSDOWN,
    MAP_SHARED_VALIDATE,
    MAP_DROPPABLE,
    MAP_DROPPABLE | MAP_LOCKED,
    0,
]
PROTS = [RW] * 6 + [PROT_READ, PROT_READ, PROT_NONE, 7]


def some_call(rng):
    page, pages = rng.randrange(PAGES), rng.randrange(1, 9)
    addr, length = ARENA + page * P, pages * P
    if rng.random() < 0.04:
        addr += rng.choice([1, 8, P - 1])
    if rng.random() < 0.1:
        length += rng.choice([-P, -1, 1, -(1 << 60), 1 << 47, -pages * P - P])
        length %= 1 << 64
    kind = rng.choices(
        ["mmap", "munmap", "mprotect", "touch", "brk", "mseal", "fork"],
        [30, 18, 26, 16, 8, 0.7, 2],
    )[0]
    if kind == "mmap":
        where = rng.choices([MAP_FIXED, MAP_FIXED_NOREPLACE, 0], [6, 2, 1])[0]
        return ("mmap", addr, length, rng.choice(PROTS), rng.choice(KINDS) | where | MAP_ANONYMOUS)
    if kind == "munmap":
        return ("munmap", addr, length)
    if kind == "mprotect":
        extra = rng.choice([PROT_GROWSDOWN, 3 << 24, 0x10, 8]) if rng.random() < 0.1 else 0
        return ("mprotect", addr, length, rng.choice(PROTS) | extra)
    if kind == "touch":
        return ("touch", ARENA + page * P, pages)
    if kind == "brk":
        return ("brk", rng.choice([-1, 0, 1]) * rng.randrange(3) + rng.randrange(12) * P)
    if kind == "mseal":
        return ("mseal", addr, length, rng.choice([0, 0, 0, 1]))
    return ("fork",)


def sequence_of(seed, calls):
    rng = random.Random(seed)
    return [some_call(rng) for _ in range(calls)]


def compare(sequences, make):
    """Give the number of calls compared; after each, results and layouts agree."""
    compared = 0
    for sequence, theirs in zip(sequences, host_calls.run(sequences), strict=True):
        if theirs is None:
            pytest.skip("this kernel has no PR_SET_MM_MAP (CONFIG_CHECKPOINT_RESTORE)")
        ours = make()
        for i, (step, (result, vmas)) in enumerate(zip(sequence, theirs, strict=True)):
            got = [ours.step(*step), ours.layout()]
            script = "\n".join(map(repr, sequence[: i + 1]))
            assert got == [result, vmas], f"after\n{script}"
            compared += 1
    return compared


@pytest.mark.parametrize("first", range(0, 90, 30))
def test_random_sequences_as_the_host_does_them(first):
    assert compare([sequence_of(seed, 40) for seed in range(first, first + 30)], Ours) == 1200


def test_random_sequences_on_real_memory():
    sequences = [sequence_of(seed, 40) for seed in range(500, 530)]
    with Machine(nodes=1, memory="128M", window="1G") as machine:

        def make():
            machine.check()
            for process in list(machine.processes.values()):
                process.exit()
            return OnMemory(machine)

        assert compare(sequences, make) == 1200
        machine.check()
