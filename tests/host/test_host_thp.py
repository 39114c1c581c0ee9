"""Huge pages, as the kernel that this runs on has them: collapsed, forked, protected, split."""

from __future__ import annotations

import errno
import os
import platform
import random
import re
from dataclasses import replace
from pathlib import Path

import pytest
from host.compare import Divergence, Pair, Parted, replay
from host.host_world import ONCE, HostWorld
from host.ops import PAGE, Op
from host.real_world import RealWorld
from host.test_host_diff import needs_the_same_kernel

pytestmark = pytest.mark.skipif(
    platform.machine() != "x86_64", reason="the drivers of the host's side are x86-64 code")

THP = "/sys/kernel/mm/transparent_hugepage"
HUGE, BLOCKS = 2 << 20, 3
PAGES = HUGE // PAGE
A = 1 << 45                     # on a 2 MiB bound in both worlds, and far from what is moved
RW, READ, NONE = 3, 1, 0
ANON, SHARED, FIXED = 0x22, 0x21, 0x10
DONTNEED, FREE, HUGEPAGE, NOHUGEPAGE, COLD, COLLAPSE, GUARD, UNGUARD = (
    4, 8, 14, 15, 20, 25, 102, 103)
MAP = Op(1, "mmap", (A, BLOCKS * HUGE, RW, ANON | FIXED, 0))
FORK = Op(1, "fork", (2,))
# Numbers of smaps that huge pages change.
FIELDS = re.compile(r"^(Rss|Pss|(?:Shared|Private)_(?:Clean|Dirty)|Anonymous|AnonHugePages"
                    r"|Locked): +(\d+) kB$", re.MULTILINE)


def at(page: int) -> int:
    return A + page * PAGE


def write(page: int, n: int = 1, slot: int = 1) -> Op:
    return Op(slot, "touch", (at(page), n, True))


def store(page: int, seed: int = 1, slot: int = 1, raw: bool = True) -> Op:
    return Op(slot, "write", (at(page) + 5, 9, seed, raw))


def load(page: int, slot: int = 1, raw: bool = True) -> Op:
    return Op(slot, "read", (at(page), 16, 0, raw))


def advise(advice: int, page: int, n: int, slot: int = 1) -> Op:
    return Op(slot, "madvise", (at(page), n * PAGE, advice))


def collapse(block: int = 0, blocks: int = 1, slot: int = 1) -> Op:
    return advise(COLLAPSE, block * PAGES, blocks * PAGES, slot)


def protect(prot: int, page: int, n: int, slot: int = 1) -> Op:
    return Op(slot, "mprotect", (at(page), n * PAGE, prot))


class _Unmarked:
    """A world whose pagemap does not say what is mapped once: Linux asks a huge page's head."""

    def look(self, slot):
        look = super().look(slot)
        return replace(look, words=tuple(
            words and tuple(word & ~ONCE for word in words) for words in look.words))


class HugeHost(_Unmarked, HostWorld):
    pass


class HugeReal(_Unmarked, RealWorld):
    """When a huge zero page is split, its pages are other frames than the zero page."""

    def look(self, slot):
        look, p = super().look(slot), self._processes[slot]
        return replace(look, frames=tuple(
            frames and tuple(
                0 if frame >= 0 and self._is_zero(p, vma.start + i * PAGE) else frame
                for i, frame in enumerate(frames))
            for vma, frames in zip(look.vmas, look.frames, strict=True)))

    @staticmethod
    def _is_zero(p, address):
        step = p.walk(address)[-1]
        return step.level == "pte" and "special" in step.decoded["flags"]


class HugePair(Pair):
    """Two worlds that are asked what they say of huge pages after each step."""

    def step(self, op):
        answer = super().step(op)
        for slot in self.alive:
            numbers = [self._numbers(world.smaps(slot)) for world in (self.left, self.right)]
            if numbers[0] != numbers[1]:
                only = [sorted(numbers[i].items() - numbers[1 - i].items()) for i in (0, 1)]
                raise Parted(f"smaps of {slot}", *only)
        self.compare_all()
        return answer

    @staticmethod
    def _numbers(smaps):
        found, start = {}, 0
        for line in smaps.splitlines():
            if "-" in (head := line.split(None, 1)[0]):
                start = int(head.split("-")[0], 16)
            elif A <= start < A + BLOCKS * HUGE and (match := FIELDS.match(line)):
                found[start - A, match[1]] = int(match[2])
        return found


@pytest.fixture(scope="module")
def pair():
    needs_the_same_kernel()
    host = Path(f"{THP}/enabled")
    if not host.exists():
        pytest.skip("the host's kernel has no transparent huge pages")
    words = {path.parent.name: path.read_text()
             for path in (host, *Path(THP).glob("hugepages-*kB/enabled"))}
    if "[never]" in words.pop("transparent_hugepage"):
        pytest.skip("the host has huge pages switched off")
    right = HugeReal(thp=True, memory="128M")
    right.machine.sysfs[f"{THP}/enabled"] = re.search(r"\[(\w+)\]", host.read_text())[1]
    right.machine.sysfs[f"{THP}/use_zero_page"] = Path(f"{THP}/use_zero_page").read_text()
    for name, text in words.items():
        path = f"{THP}/{name}/enabled"
        if path in right.machine.sysfs.paths():
            right.machine.sysfs[path] = re.search(r"\[(\w+)\]", text)[1]
    left = HugeHost(right.distance, thp=True)
    yield HugePair(left, right)
    left.close()
    right.machine.check()
    right.close()


def agreed(pair: Pair, steps: list[Op]) -> Divergence | None:
    """Take steps, once more where the kernel's khugepaged came in between."""
    collapsed = Path(f"{THP}/khugepaged/pages_collapsed")
    for _ in range(5):
        before = collapsed.read_text()
        parted = replay(pair, steps)
        if parted is None or collapsed.read_text() == before:
            break
    return parted


CASES = {
    "one page of 512": [MAP, store(3), collapse()],
    "nothing is there": [MAP, collapse()],
    "nothing was ever there but elsewhere": [MAP, store(PAGES), collapse(), collapse(1)],
    "some of three": [MAP, store(1), store(2 * PAGES), collapse(0, 3), collapse(2)],
    "twice": [MAP, store(1), collapse(), collapse(), store(2), load(1)],
    "the zero page and a page": [MAP, store(7), load(8), load(PAGES), collapse(0, 2), store(8)],
    "ranges with no whole block": [
        MAP, store(0), advise(COLLAPSE, 1, 1), advise(COLLAPSE, 1, PAGES - 1),
        advise(COLLAPSE, 0, PAGES - 1), advise(COLLAPSE, 1, PAGES), advise(COLLAPSE, 1, 2 * PAGES),
        advise(COLLAPSE, 1, 2 * PAGES - 2)],
    "a read-only VMA": [MAP, store(9), protect(READ, 0, 3 * PAGES), collapse(), load(9), store(9)],
    "a VMA that may not be touched": [
        MAP, store(9), protect(NONE, 0, 3 * PAGES), collapse(), load(9),
        protect(RW, 0, 3 * PAGES), load(9), store(10)],
    "a smaller VMA within": [MAP, store(9), protect(READ, 1, 1), collapse(), collapse(0, 3)],
    "a VMA without a whole block": [
        MAP, store(9), Op(1, "munmap", (at(PAGES - 1), PAGE)), advise(COLLAPSE, 0, PAGES - 1)],
    "a hole": [MAP, store(9), store(PAGES), Op(1, "munmap", (at(2 * PAGES), PAGE)),
               collapse(0, 3)],
    "guard regions": [MAP, store(9), store(PAGES), advise(GUARD, 30, 2), collapse(0, 2),
                      advise(UNGUARD, 30, 2), collapse(0, 2)],
    "no huge pages here": [MAP, store(9), advise(NOHUGEPAGE, 0, 3 * PAGES), collapse()],
    "no huge pages for this process": [
        MAP, store(9), Op(1, "prctl", (41, 1, 0, 0, 0)), collapse(),
        Op(1, "prctl", (41, 0, 0, 0, 0)), collapse()],
    "huge pages only where advised": [
        MAP, store(9), Op(1, "prctl", (41, 1, 2, 0, 0)), collapse(), store(PAGES),
        advise(HUGEPAGE, 2 * PAGES, PAGES), store(2 * PAGES)],
    "shared memory on other bounds": [
        Op(1, "mmap", (at(1), 2 * HUGE, RW, SHARED | FIXED, 0)), collapse(1), store(PAGES),
        collapse(1)],
    "locked": [MAP, store(9), Op(1, "mlock", (A, 3 * HUGE)), collapse(0, 2),
               Op(1, "munlock", (A, HUGE))],
    "locked in part": [MAP, store(9), Op(1, "mlock", (A, 4 * PAGE)), collapse()],
    "what may be dropped": [MAP, write(0, 20), advise(FREE, 0, 10), collapse()],
    "shared with a child, by the parent": [
        MAP, write(0, 10), store(3), FORK, collapse(), store(3, 2), load(3, 2), store(4, 3, 2)],
    "shared with a parent, by the child": [
        MAP, write(0, 10), store(3), FORK, collapse(slot=2), store(3, 2, 2), load(3),
        Op(1, "exit"), store(5, 1, 2)],
    "a huge page is forked": [
        MAP, store(3), collapse(), FORK, load(3, 2), store(3, 2), load(3, 2), store(4, 3, 2),
        load(3), load(4)],
    "the last owner has it huge": [
        MAP, store(3), collapse(), FORK, Op(2, "exit"), store(4), load(3)],
    "the child is the last owner": [
        MAP, store(3), collapse(), FORK, Op(1, "exit"), store(4, 1, 2), load(3, 2)],
    "who copied a page leaves the rest": [
        MAP, store(3), collapse(), FORK, store(9, 2, 2), Op(1, "fork", (3,)), store(10, 2, 3),
        Op(2, "exit"), Op(3, "exit"), store(11), load(9), load(10)],
    "all of it is protected": [
        MAP, store(3), collapse(), protect(READ, 0, 3 * PAGES), load(3), store(3),
        protect(RW, 0, 3 * PAGES), store(4), protect(NONE, 0, PAGES), load(3),
        protect(RW, 0, PAGES), load(3), store(5)],
    "part of it is protected": [
        MAP, store(3), collapse(), protect(READ, 3, 1), store(3), store(4), load(3),
        protect(RW, 3, 1), store(3)],
    "a forked one is protected and opened": [
        MAP, store(3), collapse(), FORK, protect(READ, 0, PAGES), protect(RW, 0, PAGES),
        store(3, 2), load(3, 2)],
    "part of it goes": [MAP, store(3), collapse(), advise(DONTNEED, 5, 7), load(3), load(5),
                        collapse(), load(3)],
    "all of it goes": [MAP, store(3), collapse(), advise(DONTNEED, 0, PAGES), load(3)],
    "all of it may be dropped": [
        MAP, store(3), collapse(), advise(FREE, 0, PAGES), store(8), load(3)],
    "all of it is cold": [MAP, store(3), collapse(), advise(COLD, 0, PAGES), load(3)],
    "guard regions come over it": [MAP, store(3), collapse(), advise(GUARD, 0, 2), load(3),
                                   load(0), advise(UNGUARD, 0, PAGES), load(0)],
    "a fault brings it": [MAP, advise(HUGEPAGE, 0, 3 * PAGES), store(3), store(PAGES + 1), FORK,
                          store(3, 5, 2), load(3)],
    "empty memory is read": [
        MAP, advise(HUGEPAGE, 0, 3 * PAGES), load(3), load(4), load(PAGES), FORK, store(3),
        load(3, 2), store(PAGES, 2, 2), load(PAGES), Op(1, "exit"), load(3, 2)],
    "the huge zero page is split": [
        MAP, advise(HUGEPAGE, 0, 3 * PAGES), load(3), protect(READ, 9, 1), load(4), store(4),
        protect(RW, 9, 1), store(5), collapse(), load(PAGES), advise(DONTNEED, PAGES, 3),
        load(PAGES + 3), store(PAGES + 4), collapse(1)],
    "the huge zero page as it is": [
        MAP, advise(HUGEPAGE, 0, 3 * PAGES), load(3), collapse(), protect(READ, 0, 3 * PAGES),
        load(4), protect(RW, 0, 3 * PAGES), advise(FREE, 0, PAGES), advise(COLD, 0, PAGES),
        store(9)],
    "it moves": [MAP, advise(HUGEPAGE, 0, PAGES), store(3),
                 Op(1, "mremap", (A, HUGE, HUGE, 3, at(2 * PAGES))), load(2 * PAGES + 3)],
}


@pytest.mark.parametrize("name", CASES)
def test_case(pair, name):
    parted = agreed(pair, [Op(1, "spawn"), *CASES[name]])
    assert parted is None, parted


def _random_steps(r: random.Random, n: int, advised: bool = True) -> list[Op]:
    """
    Steps that meet huge pages more often than not.

    :param advised: whether faults bring some.  A table that became empty bit by bit keeps the
        kernel from it, and realmem has none then: seldom, but in many steps it happens.
    """
    steps = [Op(1, "spawn"), MAP]
    for _ in range(n):
        slot = r.choice((1, 1, 1, 2, 2, 3))
        block, page = r.randrange(BLOCKS), r.randrange(PAGES)
        first = block * PAGES + page
        whole = r.random() < 0.6
        start, length = (block * PAGES, r.choice((PAGES, 2 * PAGES))) if whole else (
            first, r.choice((1, 3, 40, 700)))
        length = min(length, BLOCKS * PAGES - start)
        # No MADV_FREE and MADV_COLD: where the kernel splits a folio for it, it drops pages that
        # are zero.
        what = r.choice("wwwwrrsscccccpppdgGuFFxmlLhv")
        steps += {
            "w": [write(first, min(r.choice((1, 2, 30)), BLOCKS * PAGES - first), slot)],
            "s": [store(first, r.randrange(256), slot, r.random() < 0.5)],
            "r": [load(first, slot, r.random() < 0.5)],
            # A store first: the kernel keeps empty tables where realmem does not.
            "c": [protect(RW, block * PAGES, PAGES, slot),
                  write(block * PAGES + r.randrange(9), 1, slot), collapse(block, 1, slot)],
            "p": [protect(r.choice((RW, RW, READ, NONE)), start, length, slot)],
            "d": [advise(DONTNEED, start, length, slot)],
            "g": [advise(GUARD, start, min(length, 5), slot)],
            "G": [advise(UNGUARD, start, length, slot)],
            "u": [Op(slot, "munmap", (at(start), length * PAGE))],
            "m": [Op(slot, "mmap", (at(start), length * PAGE, RW, ANON | FIXED, 0))],
            "F": [Op(slot, "fork", (r.choice((1, 2, 3)),))],
            "v": [Op(slot, "mremap", (at(start), length * PAGE, length * PAGE, 3,
                                      at(r.randrange(BLOCKS) * PAGES + (0 if whole else page))))],
            "x": [Op(slot, "exit")] if slot != 1 else [],
            "l": [Op(slot, "mlock", (at(start), length * PAGE))],
            "L": [Op(slot, "munlock", (at(start), length * PAGE))],
            "h": [advise(r.choice((HUGEPAGE if advised else NOHUGEPAGE, NOHUGEPAGE)), start,
                         length, slot)],
        }[what]
    return steps


@pytest.mark.parametrize("seed", range(6))
def test_random_steps_agree(pair, seed):
    steps = _random_steps(random.Random(seed + int(os.environ.get("REALMEM_SEED", "0"))), 60)
    parted = agreed(pair, steps)
    assert parted is None, f"{parted}\n" + "\n".join(map(repr, steps[:parted.step + 1]))


@pytest.mark.slow
def test_many_random_steps_agree(pair):
    for seed in range(100, 140):
        parted = agreed(pair, _random_steps(random.Random(seed), 100, False))
        assert parted is None, f"seed {seed}: {parted}"


def test_answers_that_occur(pair):
    """The steps that were taken met success and each refusal that needs no lack of memory."""
    pair.answers.clear()
    for name in ("one page of 512", "guard regions"):
        replay(pair, [Op(1, "spawn"), *CASES[name]])
    labels = {label for name, label in pair.answers if name == "madvise"}
    assert labels == {"ok", errno.errorcode[errno.EINVAL]}
