"""
Random steps, aimed at what is there.

The generator looks at what the first world showed last: most ranges begin or end at an edge of a
live VMA, limits lie a few pages from what is in use, and one argument in some is bad.
"""

from __future__ import annotations

import os
import random
from collections import deque
from collections.abc import Collection

from host.compare import Pair
from host.files import MOST_BYTES, SIZES
from host.ops import (
    ACCESSES,
    ARENA,
    ARENA_PAGES,
    BASE,
    INFINITY,
    NOBODY,
    OUTSIDE,
    PAGE,
    WORD,
    Op,
    Vma,
)

SLOTS = range(1, 9)
FEWEST, MOST = 3, 6             # processes alive
# Of the steps, in thousandths or so; every call well above 2 %.
WEIGHTS = {
    "mmap": 135, "munmap": 50, "mprotect": 70, "mremap": 70, "brk": 30, "madvise": 95,
    "process_madvise": 30, "mincore": 30, "mlock": 30, "mlock2": 30, "munlock": 30,
    "mlockall": 28, "munlockall": 28, "mseal": 28, "msync": 40, "prctl": 28,
    "read": 80, "write": 120, "touch": 40, "fork": 32, "exit": 31, "spawn": 8,
    "rlimit": 28, "capability": 12, "truncate": 30, "pwrite": 30, "drop": 28,
}
RW, READ, NONE = 3, 1, 0
PRIVATE, SHARED, ANON, FIXED, NOREPLACE = 2, 1, 0x20, 0x10, 0x100000
GROWSDOWN, LOCKED, NORESERVE, POPULATE, NONBLOCK, STACK = (
    0x100, 0x2000, 0x4000, 0x8000, 0x10000, 0x20000)
DROPPABLE = 8
MAYMOVE, MREMAP_FIXED, DONTUNMAP = 1, 2, 4
WRITABLE = "w-s", "wxs"
PROTS = {RW: 48, READ: 14, NONE: 14, 2: 4, 7: 6, 5: 5, 4: 3, 0x0B: 2, 6: 2}
KINDS = {PRIVATE | ANON: 78, SHARED | ANON: 14, ANON: 2, 3 | ANON: 1, PRIVATE: 1, SHARED: 1,
         DROPPABLE | ANON: 3}
# Of a file: how it is shared, how it was opened, from where on it is mapped.
FILE_KINDS = {PRIVATE: 47, SHARED: 47, 3: 3, 0: 1, DROPPABLE: 1, 5: 1}
FILE_HOW = {os.O_RDWR: 70, os.O_RDONLY: 24, os.O_WRONLY: 6}
FILE_OFFSETS = {0: 45, PAGE: 15, 2 * PAGE: 12, 4 * PAGE: 10, 9 * PAGE: 6, 20 * PAGE: 4, 1: 2,
                1 << 62: 2, (1 << 63) - PAGE: 2, 1 << 63: 1, WORD - PAGE + 1: 1}
EXTRAS = {POPULATE: 13, NONBLOCK: 3, LOCKED: 6, NORESERVE: 10, GROWSDOWN: 5, STACK: 3}
# include/uapi/asm-generic/mman-common.h; poisoning (100, 101) would cost the host real memory.
ADVICE = {4: 22, 8: 8, 9: 4, 0: 3, 1: 3, 2: 3, 3: 4, 10: 5, 11: 5, 12: 2, 13: 2, 14: 2, 15: 3,
          16: 3, 17: 3, 18: 6, 19: 3, 20: 4, 21: 4, 22: 6, 23: 6, 24: 4, 25: 2, 102: 12, 103: 8,
          5: 1, 26: 1, 99: 1, -1: 1}
DONTNEED, FREE, COLD, PAGEOUT = 4, 8, 20, 21
# What does something to a file's mapping: also REMOVE, WILLNEED, POPULATE_READ, POPULATE_WRITE.
FILE_ADVICE = {DONTNEED: 20, 9: 14, 3: 14, COLD: 12, PAGEOUT: 14, 22: 8, 23: 8, 102: 6, 103: 4}
PR_SET_VMA, PR_SET_THP, PR_GET_THP, PR_SET_MERGE, PR_GET_MERGE = (
    0x53564D41, 41, 42, 67, 68)
HUGE = (WORD, WORD - PAGE + 2, 1 << 63, 1 << 47, (1 << 47) - PAGE, (1 << 47) - (1 << 30),
        WORD - (1 << 20))
# The driver itself lies low: only what is bad or begins at one of these goes to addresses as low.
LOWEST = 1 << 32
FAR = (0, PAGE, 1, WORD - PAGE + 1, (1 << 47) - PAGE, 1 << 47, 1 << 63,
       0xFFFF888000000000)
# All of what a page table covers, so that runs of frames are reserved for it.
WIDE_BYTES = 2 << 20
WIDE = BASE - 3 * WIDE_BYTES
NAMES = (None, "", "stack", "a b", "x" * 79, "x" * 80, "[bad]", "tab\t", "heap", "heap")


class Generator:
    """
    Makes up steps.

    :param seed: everything follows from it.
    :param without: names of steps to leave out, and of features: shared, growsdown,
        lock, stack, names, files.
    """

    def __init__(self, seed: int, without: Collection[str] = ()) -> None:
        self._random = random.Random(seed)
        self._without = frozenset(without)
        if "files" in self._without:
            self._without |= {*OUTSIDE}
        self._weights = {name: weight for name, weight in WEIGHTS.items()
                         if name not in self._without}
        self._vmas: list[Vma] = []
        self._counts: tuple[int, ...] = (0, 0, 0)
        self._heap = BASE
        self._may_page_out = bool(seed % 2)
        self._recent: deque[tuple[int, int]] = deque(maxlen=24)     # (slot, address) accessed
        self._stored: deque[tuple[int, int]] = deque(maxlen=8)      # (file, byte) stored to
        self._sizes: tuple[int, ...] = SIZES
        self._slot = 0

    def start(self, heap: int) -> list[Op]:
        """Begin with as many processes as there must be."""
        self._heap = heap
        begin = [Op(slot, "spawn") for slot in SLOTS[:FEWEST]]
        if self._chance(40):
            begin += [Op(slot, "mmap", (WIDE, WIDE_BYTES, RW, PRIVATE | ANON | FIXED, 0))
                      for slot in SLOTS[:self._random.randint(1, FEWEST)]]
        return begin

    def next(self, pair: Pair) -> Op:
        """Make up one step."""
        while not pair.fits(op := self._next(pair)):
            pass
        return op

    def _next(self, pair: Pair) -> Op:
        self._sizes = pair.sizes
        while True:
            name, = self._random.choices(list(self._weights), list(self._weights.values()))
            if name in OUTSIDE:
                return Op(NOBODY, name, getattr(self, f"_{name}")())
            free = [slot for slot in SLOTS if slot not in pair.alive]
            slot = self._pick(pair.alive)
            if name == "exit":
                if len(pair.alive) > FEWEST:
                    # The oldest have most that is sealed.
                    return Op(min(slot, self._pick(pair.alive), key=pair.alive.index), "exit")
                name = "fork"
            if name in ("fork", "spawn"):
                if len(pair.alive) >= MOST:
                    continue
                child = self._pick(free)
                if name == "spawn":
                    return Op(child, "spawn")
                self._recent.extend([(child, at) for who, at in self._recent if who == slot][-8:])
                return Op(slot, "fork", (child,))
            if self._recent and name in ACCESSES and self._chance(55):
                # Where somebody was just now: what the host still has mapped there tells.
                slot = self._random.choice(self._recent)[0]
                if slot not in pair.alive:
                    continue
            look = pair.looks[slot][0]
            self._slot = slot
            self._vmas, self._counts = list(look.vmas), look.counts
            return Op(slot, name, getattr(self, f"_{name}")())

    # ---- parts ----

    def _chance(self, percent: float) -> bool:
        return self._random.random() * 100 < percent

    def _pick(self, some: Collection[int] | tuple[object, ...]) -> int:
        return self._random.choice(list(some))                           # type: ignore[arg-type,return-value]

    def _weighted(self, table: dict[int, int]) -> int:
        return self._random.choices(list(table), list(table.values()))[0]

    def _small(self) -> int:
        """Give a number of pages, mostly few."""
        r = self._random
        return r.choice((1, 1, 1, 2, 2, 3, 4, 5, 8)) if self._chance(85) else r.randint(6, 40)

    def _address(self) -> int:
        """Give a page of the arena, near what is mapped or anywhere."""
        if self._vmas and self._chance(70):
            vma = self._random.choice(self._vmas)
            near = self._random.choice((vma.start, vma.end, vma.start - PAGE, vma.end + PAGE,
                                        vma.start + (vma.end - vma.start >> 13 << 12)))
            if LOWEST <= near < BASE + ARENA_PAGES * PAGE:
                return near
        return ARENA + self._random.randrange(ARENA_PAGES) * PAGE

    def _file_range(self) -> tuple[int, int]:
        """Give a range of a file's mapping, where there is one."""
        mapped = [vma for vma in self._vmas if vma.file is not None]
        if not mapped:
            return self._range()
        vma = self._random.choice(mapped)
        pages = vma.end - vma.start >> 12
        first = self._random.choice((0, 0, self._random.randrange(pages)))
        n = self._random.choice((pages - first, self._random.randint(1, pages - first)))
        return self._spoil(vma.start + first * PAGE, n * PAGE)

    def _range(self) -> tuple[int, int]:
        """Give a range of bytes: of live VMAs, mostly; beginning on a page, mostly."""
        r = self._random
        before = [at & -PAGE for slot, at in self._recent if slot == self._slot and at >= LOWEST]
        if before and self._chance(25):
            start, pages = r.choice(before), r.choice((1, 1, 2))
        elif not self._vmas or self._chance(6):
            start, pages = self._address(), self._small()
        else:
            at = r.randrange(len(self._vmas))
            vma = self._vmas[at]
            if vma.start < LOWEST:
                return vma.start, r.choice((PAGE, vma.end - vma.start, 0))
            total = vma.end - vma.start >> 12
            kind = r.random()
            if kind < 0.25:
                start, pages = vma.start, total
            elif kind < 0.45:
                start, pages = vma.start, r.randint(1, total)
            elif kind < 0.62:
                pages = r.randint(1, total)
                start = vma.end - pages * PAGE
            elif kind < 0.82:
                first = r.randrange(total)
                start, pages = vma.start + first * PAGE, r.randint(1, total - first)
            else:
                last = self._vmas[min(len(self._vmas) - 1, at + r.randint(0, 3))]
                start = vma.start + r.randrange(total) * PAGE
                end = last.end - r.randrange(last.end - last.start >> 12) * PAGE
                end += PAGE * r.choice((0, 0, 0, 1, 2))
                pages = max(1, end - start >> 12)
                if pages > 4 * ARENA_PAGES:         # from the heap to the mmap area
                    pages = total
        length = pages * PAGE
        return self._spoil(start, length)

    def _spoil(self, start: int, length: int) -> tuple[int, int]:
        """Make a range odd or bad now and then."""
        r = self._random
        if self._chance(88):
            return start, length
        kind = r.randrange(6)
        if kind == 0:
            return start + r.choice((1, 8, 100, 2048, 4095)), length
        if kind == 1:
            return start, 0
        if kind == 2:
            return start, r.choice(HUGE)
        if kind == 3:
            return r.choice(FAR), r.choice((min(length, 40 * PAGE), 0, PAGE))
        return start, max(1, length - r.choice((1, 2048, 4095)))

    # ---- calls ----

    def _mmap(self) -> tuple[object, ...]:
        r = self._random
        pages = self._small()
        length = pages * PAGE - (r.choice((1, 4095, 2000)) if self._chance(6) else 0)
        flags, prot = self._weighted(KINDS), self._weighted(PROTS)
        file = "files" not in self._without and self._chance(28)
        if file:
            flags = self._weighted(FILE_KINDS)
        elif "shared" in self._without or (flags & DROPPABLE and self._may_page_out):
            flags = PRIVATE | ANON
        for extra, percent in EXTRAS.items():
            if self._chance(percent):
                flags |= extra
        if "growsdown" in self._without or (flags & GROWSDOWN and flags & SHARED
                                            and self._chance(70)):
            flags &= ~GROWSDOWN
        if "lock" in self._without:
            flags &= ~LOCKED
        if "stack" in self._without:
            flags &= ~STACK
        kind = r.random()
        addr = 0
        if kind < 0.34:
            flags |= FIXED
            addr = self._range()[0] if self._chance(65) else self._address()
        elif kind < 0.44:
            flags |= NOREPLACE
            addr = self._address()
        elif kind < 0.68:
            addr = self._address() + (r.choice((1, 100, 4095)) if self._chance(10) else 0)
        if self._chance(4):
            # What begins below the driver and is fixed may not take its place.
            length = 0 if addr < LOWEST and flags & FIXED else r.choice((0, *HUGE))
        elif self._chance(2):
            addr = r.choice(FAR[3:])
        if self._chance(2):
            return WIDE, WIDE_BYTES, RW, PRIVATE | ANON | FIXED, 0
        if self._total() > 600 and not flags & FIXED:
            length = min(length, PAGE)
        if file:
            # As a stack it is refused; that needs few tries.
            flags &= ~(GROWSDOWN if self._chance(80) else 0)
            return (addr, length, prot, flags, self._weighted(FILE_OFFSETS),
                    r.randrange(len(SIZES)), self._weighted(FILE_HOW))
        return addr, length, prot, flags, r.choice((PAGE, 5 * PAGE, 1, 4095)) \
            if self._chance(3) else 0

    def _total(self) -> int:
        return sum(vma.end - vma.start >> 12 for vma in self._vmas)

    def _munmap(self) -> tuple[object, ...]:
        return self._range()

    def _mprotect(self) -> tuple[object, ...]:
        prot = self._weighted(PROTS)
        if self._chance(4):
            prot |= self._random.choice((0x01000000, 0x02000000, 0x03000000, 0x10, 0x40000000))
        return *self._range(), prot

    def _mremap(self) -> tuple[object, ...]:
        r = self._random
        old, old_size = self._range()
        change = r.random()
        if change < 0.3:
            new_size = old_size
        elif change < 0.6:
            new_size = old_size + self._small() * PAGE & WORD
        elif change < 0.9:
            new_size = max(PAGE, old_size - self._small() * PAGE)
        else:
            new_size = self._spoil(0, self._small() * PAGE)[1]
        if new_size > 1 << 30 and new_size not in HUGE:
            new_size = r.choice(HUGE)
        if self._chance(3):
            old_size = 0
        flags = r.choice((0, 0, MAYMOVE, MAYMOVE, MAYMOVE, MAYMOVE | MREMAP_FIXED,
                          MAYMOVE | MREMAP_FIXED, MAYMOVE | MREMAP_FIXED, MAYMOVE | DONTUNMAP,
                          MAYMOVE | DONTUNMAP | MREMAP_FIXED))
        if flags & DONTUNMAP and self._chance(85):
            new_size = old_size
        if self._chance(4):
            flags = r.choice((MREMAP_FIXED, DONTUNMAP, 8, MAYMOVE | 16))
        if self._counts[0]:
            flags &= ~DONTUNMAP         # see differences
        if self._total() > 600 and new_size > old_size:
            new_size = old_size
        new = self._address()
        if self._chance(5):
            new = r.choice((new + 1, *FAR[3:]))
        return old, old_size, new_size, flags, new if flags & (MREMAP_FIXED | DONTUNMAP) else 0

    def _brk(self) -> tuple[object, ...]:
        r = self._random
        heap = [vma for vma in self._vmas if vma.start < BASE - (1 << 30)]
        end = heap[-1].end if heap else self._heap
        kind = r.random()
        if kind < 0.45:
            to = end + r.choice((1, 100, PAGE, 2 * PAGE, 5 * PAGE, 9 * PAGE + 17, -5))
        elif kind < 0.75:
            to = max(self._heap, end - r.choice((1, PAGE, PAGE + 1, 3 * PAGE, 7 * PAGE)))
        elif kind < 0.85:
            to = self._heap
        else:
            to = r.choice((0, self._heap - 1, self._heap - PAGE, WORD, BASE, 1 << 46, PAGE))
        if to > self._heap + (100 << 12) and to < BASE:
            to = self._heap + PAGE
        return (to,)

    def _madvise(self) -> tuple[object, ...]:
        if self._chance(20):
            return *self._file_range(), self._possible(self._weighted(FILE_ADVICE))
        return *self._range(), self._advice()

    def _advice(self) -> int:
        return self._possible(self._weighted(ADVICE))

    def _possible(self, advice: int) -> int:
        # See differences: what has been given up, or is shared, would be reclaimed.
        if advice == FREE and self._may_page_out:
            return DONTNEED
        if advice == PAGEOUT and not (self._may_page_out
                                      and all(vma.file is not None or not vma.shared
                                              for vma in self._vmas)):
            return COLD
        return advice

    def _process_madvise(self) -> tuple[object, ...]:
        count = self._random.choice((0, 1, 1, 1, 2, 2, 3, 5))
        ranges = [self._range() for _ in range(count)]
        if count > 1 and self._chance(15):
            ranges[self._random.randrange(count)] = (self._address() + self._chance(40), 0)
        return tuple(ranges), self._advice()

    def _mincore(self) -> tuple[object, ...]:
        return self._range()

    def _mlock(self) -> tuple[object, ...]:
        return self._range()

    def _mlock2(self) -> tuple[object, ...]:
        return *self._range(), self._random.choice((0, 1, 1, 1, 1, 2, 3))

    def _munlock(self) -> tuple[object, ...]:
        return self._range()

    def _mlockall(self) -> tuple[object, ...]:
        return (self._random.choice((1, 1, 2, 2, 3, 3, 5, 6, 7, 4, 0, 8, 1)),)

    def _munlockall(self) -> tuple[object, ...]:
        return ()

    def _mseal(self) -> tuple[object, ...]:
        start, length = self._range()
        if length > 2 * PAGE and length < 1 << 30 and self._chance(85):
            length = PAGE * self._random.choice((1, 2))
        if self._chance(45):            # mostly none, lest all be sealed
            return (start, *self._random.choice(((0, 0), (length, 1), (4 << 30, 0), (WORD, 0))))
        return start, length, 0

    def _msync(self) -> tuple[object, ...]:
        span = self._file_range() if self._chance(50) else self._range()
        return *span, self._random.choice((0, 1, 2, 4, 4, 4, 4, 5, 6, 7, 8, 2))

    def _prctl(self) -> tuple[object, ...]:
        r = self._random
        if "names" not in self._without and self._chance(60):
            return PR_SET_VMA, 0 if self._chance(95) else 1, *self._range(), r.choice(NAMES)
        return r.choice(((PR_SET_THP, 1, 0, 0, 0), (PR_SET_THP, 1, 0, 0, 0),
                         (PR_GET_THP, 0, 0, 0, 0), (PR_GET_THP, 0, 0, 0, 0),
                         (PR_GET_THP, 1, 0, 0, 0), (PR_SET_THP, 1, 1, 0, 0),
                         (PR_SET_THP, 0, 0, 0, 0), (PR_SET_THP, 1, 0, 1, 0)))

    # ---- accesses ----

    def _place(self) -> int:
        """Give an address to access, often one of the last ones."""
        r = self._random
        before = [at for slot, at in self._recent if slot == self._slot]
        if not self._chance(15):
            before = [at for at in before
                      if any(vma.start <= at < vma.end for vma in self._vmas)]
        if before and self._chance(60):
            return r.choice(before)
        place = self._new_place()
        if place < 1 << 63:
            self._recent.append((self._slot, place))
        return place

    def _new_place(self) -> int:
        r = self._random
        if not self._vmas or self._chance(5):
            return self._address() + r.randrange(PAGE)
        vma = r.choice(self._vmas)
        if self._chance(6):
            return max(0, vma.start - r.randint(1, 3 * PAGE))
        if self._chance(4):
            return vma.end + r.randrange(PAGE)
        return vma.start + r.randrange(vma.end - vma.start)

    def _bytes(self) -> int:
        r = self._random
        return r.choice((1, 1, 8, 64, 300)) if self._chance(70) else r.randint(1, 3 * PAGE)

    def _read(self) -> tuple[object, ...]:
        return self._place(), self._bytes(), 0, self._chance(50)

    def _write(self) -> tuple[object, ...]:
        wide = [vma for vma in self._vmas if vma.start < WIDE + WIDE_BYTES and WIDE < vma.end]
        if wide and self._chance(60):
            vma = self._random.choice(wide)
            start, end = max(vma.start, WIDE), min(vma.end, WIDE + WIDE_BYTES)
            length = self._random.choice((8, 8, 3 * PAGE, 12 * PAGE, 70 * PAGE))
            place = self._random.randrange(start, end)
            self._recent.append((self._slot, place))
            return place, min(length, end - start), self._random.randrange(256), self._chance(85)
        files = [(vma, vma.file) for vma in self._vmas if vma.file is not None
                 and vma.perms[1:] in WRITABLE and vma.offset < self._sizes[vma.file]]
        if files and self._chance(25):
            place = self._file_place(*self._random.choice(files))
            return place, self._bytes(), self._random.randrange(256), self._chance(50)
        return self._place(), self._bytes(), self._random.randrange(256), self._chance(50)

    def _file_place(self, vma: Vma, file: int) -> int:
        """Give an address where a file is, often the same again."""
        r = self._random
        n = min(vma.end - vma.start, self._sizes[file] - vma.offset)
        before = [at - vma.offset for number, at in self._stored
                  if number == file and 0 <= at - vma.offset < n]
        at = r.choice(before) if before and self._chance(50) else r.randrange(n)
        self._stored.append((file, vma.offset + at))
        self._recent.append((self._slot, vma.start + at))
        return vma.start + at

    def _touch(self) -> tuple[object, ...]:
        return self._place(), self._small(), self._chance(60)

    # ---- files, from outside ----

    def _a_place(self) -> tuple[int, int]:
        """Give a file and a byte of it, often where something was stored to."""
        if self._stored and self._chance(50):
            return self._random.choice(self._stored)
        number = self._random.randrange(len(SIZES))
        return number, self._random.randint(0, self._sizes[number])

    def _truncate(self) -> tuple[object, ...]:
        r = self._random
        number, to = self._a_place()
        size = self._sizes[number]
        kind = r.random()
        if kind < 0.35:
            to += r.choice((0, 1, 10, -10, 100, PAGE, -PAGE))
        elif kind < 0.6:
            to = (size & -PAGE) + r.choice((-3, -2, -1, 0, 1, 2, 4)) * PAGE
        elif kind < 0.8:
            to = size + r.choice((-1, 1, 100, -100, PAGE, -PAGE, 5000, -5000))
        else:
            to = r.choice((0, r.randint(0, 12) * PAGE, r.randint(0, 12) * PAGE))
        return number, max(0, min(to, MOST_BYTES))

    def _pwrite(self) -> tuple[object, ...]:
        r = self._random
        number, offset = self._a_place()
        size = self._sizes[number]
        offset = r.choice((offset, offset, size, size & -PAGE, 0, r.randrange(MOST_BYTES)))
        n = r.choice((1, 8, 100, PAGE, r.randint(1, 3 * PAGE)))
        return number, min(offset, MOST_BYTES - n), n, r.randrange(256)

    def _drop(self) -> tuple[object, ...]:
        return (self._random.randrange(len(SIZES)),)

    # ---- settings ----

    def _rlimit(self) -> tuple[object, ...]:
        r = self._random
        locked, size, data = self._counts
        name = r.choice(("AS", "DATA", "MEMLOCK", "MEMLOCK", "STACK"))
        if self._chance(45):
            return name, INFINITY if name in ("AS", "DATA") else 8 << 20
        used = {"AS": size, "DATA": data, "MEMLOCK": locked, "STACK": 8}[name]
        if name == "MEMLOCK" and self._chance(30):
            return name, 0
        more = r.choice((0, 1, 2, r.randint(-4, 30), r.randint(-4, 30)))
        return name, max(0, used + more) * PAGE + r.choice((0, 0, 0, 100))

    def _capability(self) -> tuple[object, ...]:
        return "CAP_IPC_LOCK", self._chance(40)
