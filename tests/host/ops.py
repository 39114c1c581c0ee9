"""
Steps and answers, in addresses that mean the same in every world.

A process's mappings lie where its world puts them: below the top of its mmap area, from where the
kernel searches for room downwards.  Here that top is `BASE` for all.  What lies within `REACH` of
it is moved along with it, everything else (0, -4096, TASK_SIZE ...) is an address as it stands.
"""

from __future__ import annotations

import errno
from dataclasses import dataclass
from typing import NamedTuple

PAGE = 4096
BASE = 1 << 46
REACH = 1 << 38
WORD = (1 << 64) - 1
INFINITY = WORD                 # RLIM_INFINITY
ARENA_PAGES = 384               # fixed addresses and hints lie in so many pages below BASE
ARENA = BASE - ARENA_PAGES * PAGE
HEAP_DISTANCE = 60 << 30        # from the heap up to BASE, unless a world says otherwise

# What the system calls of a process are called; the rest of the steps follow.
CALLS = ("mmap", "munmap", "mprotect", "mremap", "brk", "madvise", "process_madvise", "mincore",
         "mlock", "mlock2", "munlock", "mlockall", "munlockall", "mseal", "msync", "prctl")
ACCESSES = ("read", "write", "touch")
LIFE = ("spawn", "fork", "exit")
# What is done to the files from outside, by no process: its slot is NOBODY.
OUTSIDE = ("truncate", "pwrite", "drop")
NOBODY = 0
SETTINGS = ("rlimit", "capability")
POPULATE, NONBLOCK = 0x8000, 0x10000
MS_SYNC = 4
# Which arguments are addresses of the process.
ADDRESSES = {"mmap": (0,), "munmap": (0,), "mprotect": (0,), "mremap": (0, 4), "brk": (0,),
             "madvise": (0,), "mincore": (0,), "mlock": (0,), "mlock2": (0,), "munlock": (0,),
             "mseal": (0,), "msync": (0,), "read": (0,), "write": (0,), "touch": (0,)}


class Op(NamedTuple):
    """
    One step.

    :ivar slot: the process that takes it; for spawn the one that begins; NOBODY.
    :ivar name: one of CALLS, ACCESSES, LIFE, SETTINGS or OUTSIDE.
    :ivar args: as the system call has them: mmap (addr, length, prot, flags, offset), and of a
        file (..., its number, O_RDONLY, O_WRONLY or O_RDWR); process_madvise (((addr, length),
        ...), advice); read, write (addr, n, seed, raw); touch (addr, pages, write); fork (slot);
        rlimit (name, bytes); capability (name, on); truncate (file, bytes); pwrite (file,
        offset, n, seed); drop (file).
    """

    slot: int
    name: str
    args: tuple[object, ...] = ()


@dataclass(frozen=True)
class Answer:
    """
    How a step ended.

    :ivar kind: ``"ok"``, ``"errno"``, ``"fault"``, ``"bus error"``, or what else befalls a world.
    :ivar value: what was returned, addresses moved; the errno; the si_code.
    :ivar address: of a fault.
    :ivar done: bytes accessed before it.
    """

    kind: str
    value: object = None
    address: int | None = None
    done: int | None = None

    @property
    def label(self) -> str:
        """A few characters for a table of coverage."""
        if self.kind == "errno":
            return errno.errorcode.get(int(str(self.value)), str(self.value))
        if self.kind == "fault":
            return {1: "MAPERR", 2: "ACCERR"}.get(int(str(self.value)), f"si_code {self.value}")
        return self.kind

    def __str__(self) -> str:
        if self.kind == "errno":
            return self.label
        if self.address is not None:
            return f"{self.label} at {spell(self.address)}, {self.done} done"
        if isinstance(self.value, int):
            return spell(self.value)
        return "ok" if self.value is None else f"{self.value!r}"


class Vma(NamedTuple):
    """A line of /proc/PID/maps; `object` numbers shared objects in the order they were seen."""

    start: int
    end: int
    perms: str
    offset: int
    object: int
    name: str

    @property
    def file(self) -> int | None:
        """The number of the file that it maps."""
        return int(self.name[4:]) if self.name.startswith("file") else None

    @property
    def shared(self) -> bool:
        """Whether it is MAP_SHARED."""
        return self.perms[3] == "s"

    def overlap(self, start: int, end: int) -> range:
        """Which of its pages, counted from its start, lie in a range of bytes in part at least."""
        first, last = max(start, self.start), min(end, self.end)
        return range(first - self.start >> 12, last - self.start + PAGE - 1 >> 12)

    def __str__(self) -> str:
        rest = f" {self.offset:#x} object {self.object}" if self.object else ""
        return f"{spell(self.start)} .. {spell(self.end)} {self.perms}{rest} {self.name}".rstrip()


@dataclass(frozen=True)
class Look:
    """
    What can be seen of one process.

    :ivar vmas: its maps.
    :ivar counts: VmLck, VmSize, VmData in pages.
    :ivar words: for each VMA its pagemap words, the bits compared; None where there are too many.
    :ivar frames: for each VMA the frame numbers that the words held.
    """

    vmas: tuple[Vma, ...]
    counts: tuple[int, ...]
    words: tuple[tuple[int, ...] | None, ...]
    frames: tuple[tuple[int, ...] | None, ...]


def pattern(seed: int, n: int) -> bytes:
    """Give the bytes that a write stores."""
    return (bytes(range(256)) * (n // 256 + 2))[seed & 255:][:n]


def spell(address: int) -> str:
    """Write an address as a script would."""
    if abs(address - BASE) <= REACH:
        distance = address - BASE
        sign = "-" if distance < 0 else "+"
        return f"base {sign} {abs(distance):#x}" if distance else "base"
    return f"{address:#x}" if abs(address) > 9 else str(address)


def is_moved(address: int) -> bool:
    """Whether an address moves along with BASE."""
    return abs(address - BASE) <= REACH


def brought(op: Op, answer: Answer) -> list[tuple[int, int]]:
    """Give the ranges whose pages a step has faulted in, as far as there are any."""
    if answer.kind != "ok":
        return []
    if op.name == "mmap" and int(str(op.args[3])) & (POPULATE | NONBLOCK) == POPULATE:
        return _range(answer.value, op.args[1])
    if op.name == "touch":
        start = int(str(op.args[0])) & -PAGE
        return _range(start, int(str(op.args[1])) * PAGE)
    populates = op.name == "madvise" and op.args[2] in (22, 23) and op.args[1] != 0
    if op.name in ("read", "write", "mlock") or populates:
        return _range(*op.args[:2])
    return []


def synced(op: Op, answer: Answer) -> list[tuple[int, int]]:
    """Give the ranges that a step has written back, what of them is mapped."""
    if op.name != "msync" or not int(str(op.args[2])) & MS_SYNC or (
            answer.kind != "ok" and answer.value != errno.ENOMEM):
        return []
    return _range(*op.args[:2])


def _range(start: object, length: object) -> list[tuple[int, int]]:
    first, n = int(str(start)), int(str(length))
    # A length that wraps around is that of no range; some calls answer 0 to it.
    return [(first, first + n)] if first + n < 1 << 63 else []


def touched(op: Op, answer: Answer) -> list[tuple[int, int]]:
    """Give the ranges whose contents a step may have changed, no more than some pages of each."""
    found: list[tuple[int, int]] = []
    if op.name == "process_madvise":
        found = [pair for pair in op.args[0]]                        # type: ignore[attr-defined]
    elif op.name == "mremap":
        old, old_size, new_size = (int(str(arg)) for arg in op.args[:3])
        found = [(old, max(old_size, new_size))]
        if isinstance(answer.value, int) and answer.kind == "ok":
            found.append((answer.value, new_size))
    elif op.name == "touch":
        found = [(int(str(op.args[0])), int(str(op.args[1])) * PAGE)]
    elif op.name == "mmap" and answer.kind == "ok":
        found = [(int(str(answer.value)), int(str(op.args[1])))]
    elif op.name in ADDRESSES and op.name not in ("mmap", "brk"):
        found = [(int(str(op.args[0])), int(str(op.args[1])))]
    ranges = []
    for address, length in found:
        if is_moved(address):
            start = address & -PAGE
            ranges.append((start, start + min(length + 2 * PAGE & -PAGE, 64 * PAGE)))
    return ranges
