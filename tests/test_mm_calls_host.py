"""
mremap, madvise, mlock and the rest against the running kernel: the same calls, made by a child
and planned on the model, give the same errors, the same VMAs and the same flags after each.
"""

from __future__ import annotations

import errno
import os
import random
import re
from collections import Counter

import pytest
from fake_core import as_process
from fake_pages import fake_map
from host_worker import HostProcess

from realmem.layout import PAGE_SIZE as P
from realmem.mm import madvise as advising
from realmem.mm import mincore as looking
from realmem.mm import mlock as locking
from realmem.mm.limits import CAPABILITIES
from realmem.mm.mmap import mmap
from realmem.mm.mprotect import mprotect
from realmem.mm.mremap import mremap
from realmem.mm.mseal import mseal
from realmem.mm.munmap import munmap
from realmem.mm.vma import VM_WRITE
from realmem.procfs.pid.smaps import flag_names, parse_smaps

BASE = 0x100000000000
PAGES = 48
END = BASE + PAGES * P
ADVICE = [0, 1, 2, 3, 4, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21, 22, 23, 24, 25,
          102, 103, 7]  # fmt: skip
# What begins with the arena's first digits; other VMAs of the child do not.
_ARENA = re.compile(r"(?:^1000000[0-9a-f]{5}-.*\n(?:[A-Z].*\n)*)+", re.M)
OURS = {
    "mmap": lambda mm, *a: mmap(mm, *a[:4], None, a[5]),
    "munmap": munmap,
    "mprotect": mprotect,
    "mremap": mremap,
    "madvise": advising.madvise,
    "mlock": locking.mlock,
    "mlock2": locking.mlock2,
    "munlock": locking.munlock,
    "mlockall": locking.mlockall,
    "munlockall": locking.munlockall,
    "mincore": looking.mincore,
    "msync": looking.msync,
    "mseal": mseal,
}

pytestmark = pytest.mark.skipif(
    tuple(map(int, re.findall(r"\d+", os.uname().release)[:2])) < (6, 18),
    reason="the calls are those of Linux 6.18; this kernel is older",
)


class Pair:
    """A process of the host and one of ours, which do the same."""

    def __init__(self, host, process=None, memlock=None, capable=True):
        self.host, self.process = host, process
        if process is None:
            self.mm = fake_map(capabilities=CAPABILITIES if capable else ())
        else:
            self.mm = process.mm
            process.capabilities = CAPABILITIES if capable else ()
        if memlock is not None:
            self.mm.rlimit["MEMLOCK"] = memlock
        self.seen = Counter()
        self.future = False
        self.script = []

    def ours(self, name, *args):
        try:
            result = OURS[name](self.mm, *args)
        except OSError as error:
            return -1, error.errno
        return (0 if result is None else result), 0

    def call(self, name, *args):
        """Make a call on both sides; where it answers with a place, give both places."""
        self.script.append((name, *args))
        theirs, mine = self.host.call(name, *args), self.ours(name, *args)
        assert theirs[1] == mine[1], (
            f"{self.story()}\nhost: {errno.errorcode.get(theirs[1], 0)}, "
            f"ours: {errno.errorcode.get(mine[1], 0)}")
        self.seen[name, errno.errorcode.get(mine[1], "ok")] += 1
        if name in ("mmap", "mremap") and not mine[1] and not BASE <= theirs[0] < END:
            return theirs[0], mine[0]
        if name == "mincore":
            if self.process is not None and not mine[1]:
                assert theirs[0] == list(mine[0]), self.story()
        else:
            assert theirs[0] == mine[0], self.story()
        return None

    def is_guard(self, page):
        core = self.mm.core
        if self.process is None:
            return page in core.guards
        return core.pagemap(page, 1)[0] >> 58 & 1

    def story(self):
        lines = [f"{name}({', '.join(map(hex, args))})" for name, *args in self.script[-12:]]
        return "\n".join([*lines, *map(str, self.our_vmas())])

    def our_vmas(self):
        return [
            (vma.start, min(vma.end, END),
             [name for name in flag_names(vma.vm_flags_word) if name != "sd"],
             vma.offset if vma.object is not None else 0)
            for vma in self.mm.tree.span(BASE, END)
        ]  # fmt: skip

    def host_vmas(self):
        return [
            (e.area.start, e.area.end, [name for name in e.flags if name != "sd"], e.area.offset)
            for part in _ARENA.findall(self.host.smaps())
            for e in parse_smaps(part)
        ]

    def compare(self):
        theirs, mine = self.host_vmas(), self.our_vmas()
        assert theirs == mine, f"{self.story()}\nhost has:\n" + "\n".join(map(str, theirs))
        if not self.future:             # the interpreter's own mappings are not locked
            assert self.host.locked_kb() == self.mm.core.counters[4] * 4, self.story()


class Fuzzer:
    """Random calls on one arena; what goes elsewhere is brought back or unmapped."""

    def __init__(self, pair, rng, *, weights):
        self.pair, self.rng = pair, rng
        self.names, self.weights = list(weights), list(weights.values())

    def place(self):
        return BASE + self.rng.randrange(PAGES) * P

    def span(self):
        """Give a range, mostly of what is mapped."""
        start, length = self.place(), self.rng.choice([1, 1, 2, 3, 5, 8, 20]) * P
        vma = self.pair.mm.find_vma(start)
        if vma is None or vma.start >= END or self.rng.random() < 0.3:
            return start, length
        start = self.rng.choice([vma.start, max(vma.start, start)])
        end = vma.end
        while self.rng.random() < 0.3:
            vma = self.pair.mm.find_vma(end)
            if vma is None or vma.start != end:
                break
            end = vma.end
        return start, self.rng.choice([end - start, length, min(length, end - start)])

    def step(self):
        (name,) = self.rng.choices(self.names, self.weights)
        getattr(self, f"do_{name}")()

    def do_mmap(self):
        start, length = self.place(), self.rng.choice([1, 2, 4, 8, 12]) * P
        length = min(length, END - start)
        flags = 0x10 | 0x20 | self.rng.choice([1, 2, 2, 2])
        flags |= self.rng.choice([0, 0, 0, 0x4000, 0x2000, 0x100000])
        self.pair.call("mmap", start, length, self.rng.choice([0, 1, 3, 3, 3, 5, 2]), flags, -1, 0)

    def do_munmap(self):
        self.pair.call("munmap", *self.span())

    def do_mprotect(self):
        (start, length), prot = self.span(), self.rng.choice([0, 1, 3, 3, 7, 2])
        there = self.pair.mm.tree.span(start, start + length)
        if prot & 2 and len(there) > 1 and any(vma.locked for vma in there):
            length = P      # Linux brings in each as it becomes writable, before the next one
        self.pair.call("mprotect", start, length, prot)

    def do_mremap(self):
        rng = self.rng
        (old, old_len), (new, new_len) = self.span(), self.span()
        vma = self.pair.mm.find_vma(old)
        if vma is not None and rng.random() < 0.7:
            old = rng.choice([vma.start, max(old, vma.start)])
            old_len = rng.choice([vma.end - old, old_len, 0])
        new_len = rng.choice([old_len, old_len, new_len, old_len + P, max(old_len - P, 0)])
        flags = rng.choice([0, 1, 1, 3, 3, 3, 5, 7, 7, 2, 4, 8])
        if rng.random() < 0.05:
            old, new = old + rng.choice([1, 0]), new + rng.choice([1, 0, 1 << 46, 1 << 47])
        if flags & 4 and not flags & 2:
            new = 0
        if flags & 2:
            new_len = min(new_len, max(END - new, 0)) if new < END else new_len
            if old_len > new_len and flags & 4:
                old_len = new_len
        elif old + new_len > END:
            new_len = old_len
        source = self.pair.mm.tree.span(old, old + max(old_len, P))
        if flags & 4 and any(vma.locked for vma in source):
            return      # Linux 6.18 counts it as locked for ever after, and limits what follows
        away = self.pair.call("mremap", old, old_len, new_len, flags, new)
        if away is not None:
            self.bring_back(away, (new_len + P - 1) & -P)

    def bring_back(self, away, length):
        theirs, mine = away
        tree = self.pair.mm.tree
        slots = [at for at in range(BASE, END - length, P) if not tree.overlaps(at, at + length)]
        args = (length, length, 3, self.rng.choice(slots)) if slots else (length,)
        name = "mremap" if slots else "munmap"
        self.pair.script.append((name, mine, *args))
        theirs, mine = self.pair.host.call(name, theirs, *args), self.pair.ours(name, mine, *args)
        assert theirs == mine, self.pair.story()

    def do_madvise(self):
        start, length = self.span()
        if self.rng.random() < 0.05:
            start, length = start + 1, self.rng.choice([0, 1, (1 << 64) - 1, (1 << 64) - P])
        self.pair.call("madvise", start, length, self.rng.choice(ADVICE))

    def do_mlock(self):
        start, length = self.span()
        start, length = start + self.rng.choice([0, 0, 100]), length - self.rng.choice([0, 0, 99])
        if self.rng.random() < 0.05:
            length = self.rng.choice([0, (1 << 64) - P, (1 << 64) - start, (1 << 64) - 1])
        which = self.rng.choice(["mlock", "mlock", "munlock", "munlock", "mlock2"])
        more = (self.rng.choice([0, 1, 1, 2]),) if which == "mlock2" else ()
        self.pair.call(which, start, length, *more)

    def do_mlockall(self):
        if self.rng.random() < 0.5:
            self.pair.call("munlockall")
        else:
            # All of the interpreter would be locked, and brought in: what is to come will do.
            self.pair.future = True
            self.pair.call("mlockall", self.rng.choice([2, 6, 0, 4, 8]))

    def do_mincore(self):
        start, length = self.span()
        self.pair.call("mincore", start + self.rng.choice([0, 0, 0, 7]), length)

    def do_msync(self):
        start, length = self.span()
        start += self.rng.choice([0, 0, 0, 0, 9])
        self.pair.call("msync", start, length, self.rng.choice([0, 1, 2, 4, 6, 5, 3, 8]))

    def do_mseal(self):
        start, length = self.span()
        self.pair.call("mseal", start, self.rng.choice([P, P, length]),
                       self.rng.choice([0, 0, 0, 1]))

    def do_touch(self):
        vmas = [v for v in self.pair.mm.tree.span(BASE, END) if v.vm_flags_word & VM_WRITE]
        if not vmas:
            return
        vma = self.rng.choice(vmas)
        page = self.rng.randrange(max(vma.start, BASE), min(vma.end, END), P)
        # Of a shared mapping, what lies past the end of its object is no memory.
        past = vma.object is not None and vma.pgoff + (page - vma.start) // P >= vma.object.size
        if past or self.pair.is_guard(page):
            return
        self.pair.script.append(("touch", page))
        assert self.pair.host.call("touch", page) == (0, 0)
        if self.pair.process is None:
            self.pair.mm.core.fault(page, page + P)
        else:
            self.pair.process.write(page, b"\1")


WEIGHTS = {"mmap": 14, "munmap": 6, "mprotect": 10, "mremap": 30, "madvise": 22, "mlock": 12,
           "mincore": 3, "msync": 3, "touch": 22}  # fmt: skip


def compare_random_calls(seed, options, more, steps, process=None):
    """Make calls on both sides, and count what they answered."""
    with HostProcess(**options) as host:
        pair = Pair(host, process, **options)
        fuzzer = Fuzzer(pair, random.Random(seed), weights={**WEIGHTS, **more})
        for _ in range(steps):
            fuzzer.step()
            pair.compare()
    return pair.seen


@pytest.mark.parametrize(
    ("seed", "options"), [(11, {}), (12, {"memlock": 24 * P, "capable": False})]
)
def test_random_calls_on_memory(seed, options, soak_factor):
    with as_process("real") as process:
        compare_random_calls(seed, options, {"mlockall": 3}, int(400 * soak_factor), process)


@pytest.mark.parametrize(
    ("seed", "options", "more", "steps"),
    [
        (1, {}, {"mlockall": 3}, 700),
        (2, {"memlock": 24 * P, "capable": False}, {"mlockall": 3}, 400),
        (3, {"memlock": 0, "capable": False}, {}, 120),
        (4, {}, {"mseal": 2}, 120),
        (5, {}, {"mseal": 2}, 120),
    ],
)
def test_random_calls(seed, options, more, steps, soak_factor):
    seen = compare_random_calls(seed, options, more, int(steps * soak_factor))
    if seed == 1:
        expected = [("mremap", e) for e in ("ok", "EFAULT", "EINVAL", "ENOMEM")]
        expected += [("madvise", e) for e in ("ok", "ENOMEM", "EINVAL", "EFAULT")]
        expected += [("mlock", "ok"), ("mlock", "ENOMEM"), ("munlock", "ok"), ("mlock2", "EINVAL")]
        assert [key for key in expected if key not in seen] == []
