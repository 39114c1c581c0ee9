"""
The world of realmem: the same steps by its public interface.

Contents are read out of the frames, by the direct map: p.read() would fault pages in, and may not
read what is PROT_NONE.
"""

from __future__ import annotations

import ctypes
import os

from host.files import MOST_BYTES, Files
from host.host_world import (
    LIMITS_AT_FIRST,
    MOST_PAGES,
    PFN,
    PRESENT,
    STATUS,
    WORD_MASK,
    parse_maps,
)
from host.ops import (
    BASE,
    INFINITY,
    NOBODY,
    PAGE,
    WORD,
    Answer,
    Look,
    Op,
    Vma,
    is_moved,
    pattern,
)

import realmem as rm

MEMORY = "64M"
FAULTS = rm.SegmentationFault, rm.BusError
ANON = 0x22
BUS_ADRERR = 2
FNV, FNV_PRIME = 0xCBF29CE484222325, 0x100000001B3


def fnv(data: bytes) -> int:
    """Sum up bytes as the driver does."""
    value = FNV
    for byte in data:
        value = (value ^ byte) * FNV_PRIME & WORD
    return value


class RealWorld:
    """
    Processes of one machine, and one that only looks at files.

    :param thp: whether they have huge pages.
    :param folder: where its files are to lie.
    """

    def __init__(self, thp: bool = False, folder: str | None = None, **options: object) -> None:
        self.thp = thp
        self.files = Files(folder)
        self.machine = rm.Machine(**{"nodes": 1, "memory": MEMORY, **options})
        self._numbers: dict[str, int] = {}
        self._processes: dict[int, rm.Process] = {}
        self._moved: dict[int, int] = {}
        self._outside = self.machine.spawn("outside")
        at = self._outside.mmap(None, PAGE, 0, ANON)
        self.distance = at + PAGE - self._outside.brk()
        self._outside.munmap(at, PAGE)

    def reset(self) -> None:
        """End every process."""
        for process in self._processes.values():
            process.exit()
        self._processes.clear()
        self._numbers.clear()
        self.machine.check()
        self.files.reset()

    def close(self) -> None:
        """Close the machine."""
        self.machine.close()
        self.files.close()

    # ---- steps ----

    def apply(self, op: Op) -> Answer:
        """Take a step."""
        if op.slot == NOBODY:
            return self._from_outside(op)
        try:
            return self._apply(op)
        except FAULTS as fault:
            here = op.args[0] + fault.address - self._there(op.slot, op.args[0])
            done = None if op.name == "touch" else fault.done
            if not isinstance(fault, rm.SegmentationFault):
                return Answer("bus error", BUS_ADRERR, here, done)
            code = {"SEGV_MAPERR": 1, "SEGV_ACCERR": 2}.get(str(fault.code), fault.code)
            return Answer("fault", code, here, done)
        except OSError as refused:
            return Answer("errno", refused.errno)
        except MemoryError:
            return Answer("out of memory")

    def _apply(self, op: Op) -> Answer:
        if op.name == "spawn":
            p = self.machine.spawn(f"slot {op.slot}")
            at = p.mmap(None, PAGE, 0, ANON)
            p.munmap(at, PAGE)
            self._processes[op.slot] = p
            self._moved[op.slot] = BASE - (at + PAGE)
            p.prctl(rm.PR_SET_THP_DISABLE, 0 if self.thp else 1, 0, 0, 0)
            return Answer("ok")
        p = self._processes[op.slot]
        args = list(op.args)
        if op.name == "fork":
            self._processes[args[0]] = p.fork()
            self._moved[args[0]] = self._moved[op.slot]
            return Answer("ok")
        if op.name == "exit":
            del self._processes[op.slot]
            p.exit()
            return Answer("ok")
        if op.name in ("read", "write", "touch"):
            return self._access(p, op)
        if op.name == "rlimit":
            p.rlimit[args[0]] = rm.RLIM_INFINITY if args[1] == INFINITY else args[1]
            return Answer("ok")
        if op.name == "capability":
            (p.capabilities.add if args[1] else p.capabilities.discard)(args[0])
            return Answer("ok")
        if op.name == "mmap":
            addr, length, prot, flags, offset, *file = args
            fd = self.files.fds[file[0]][file[1]] if file else None
            there = self._there(op.slot, addr)
            return self._address(op, p.mmap(there, length, prot, flags, fd, offset))
        if op.name == "process_madvise":
            ranges = [(self._there(op.slot, addr), length) for addr, length in args[0]]
            return Answer("ok", p.process_madvise(ranges, args[1]))
        if op.name == "prctl" and args[0] == rm.PR_SET_VMA:
            args[2] = self._there(op.slot, args[2])
            return Answer("ok", p.prctl(*args) or None)
        if op.name == "prctl":
            return Answer("ok", p.prctl(*args) or None)
        for at in (0, 4) if op.name == "mremap" else (0,):
            if args and op.name not in ("mlockall", "munlockall"):
                args[at] = self._there(op.slot, args[at])
        value = getattr(p, op.name)(*args)
        return self._address(op, value) if op.name in ("mremap", "brk") else Answer("ok", value)

    def _from_outside(self, op: Op) -> Answer:
        if op.name == "drop":
            self.machine.drop_caches(1)
            return Answer("ok")
        if op.name == "pwrite":
            number, offset, n, _ = op.args
            self.sync(number, offset, n)        # see differences
        getattr(self.files, op.name)(*op.args)
        return Answer("ok")

    def _access(self, p: rm.Process, op: Op) -> Answer:
        address, n = self._there(op.slot, op.args[0]), op.args[1]
        if op.name == "touch":
            p.touch(address, n * PAGE - address % PAGE, bool(op.args[2]))
            return Answer("ok")
        data = pattern(op.args[2], n)
        if op.args[3] and (views := self._views(p, address, n)):
            loaded = self._raw(p, views, data, op.name == "write")
            return Answer("ok", fnv(loaded) if op.name == "read" else None)
        if op.name == "read":
            return Answer("ok", fnv(p.read(address, n)))
        p.write(address, data)
        return Answer("ok")

    @staticmethod
    def _views(p: rm.Process, address: int, n: int) -> list[tuple[int, memoryview]]:
        views, at = [], address
        while at < address + n:
            step = min(address + n, (at | PAGE - 1) + 1) - at
            try:
                views.append((at - address, p.view(at, step)))
            except ValueError:      # outside of any window
                return []
            at += step
        return views

    @staticmethod
    def _raw(p: rm.Process, views: list[tuple[int, memoryview]], data: bytes,
             write: bool) -> bytes:
        """Load or store page by page, the first byte first: it is the one to fault."""
        loaded = []
        for at, view in views:
            try:
                with p.guard():
                    if write:
                        view[0] = data[at]
                    else:
                        view[0]
                with p.guard():
                    if write:
                        view[:] = data[at:at + len(view)]
                    else:
                        loaded.append(bytes(view))
            except FAULTS as fault:
                fault.done = at
                raise
        return b"".join(loaded)

    # ---- looking ----

    def look(self, slot: int) -> Look:
        """See what there is of a process."""
        p, moved = self._processes[slot], self._moved[slot]
        vmas = parse_maps(self.files.shorten(p.maps()), moved, self._numbers)
        found = {name: int(kb) // 4 for name, kb in STATUS.findall(p.status().encode())}
        counts = (found[b"VmLck"], found[b"VmSize"], found[b"VmData"])
        words: list[tuple[int, ...] | None] = []
        frames: list[tuple[int, ...] | None] = []
        for vma in vmas:
            pages = (vma.end - vma.start) // PAGE
            raw = None
            if pages <= MOST_PAGES:
                raw = p.pagemap(self._there(slot, vma.start), pages)
            words.append(None if raw is None else tuple([word & WORD_MASK for word in raw]))
            frames.append(None if raw is None
                          else tuple([word & PFN if word & PRESENT else -1 for word in raw]))
        return Look(tuple(vmas), counts, tuple(words), tuple(frames))

    def contents(self, slot: int, pages: list[tuple[int, int]]) -> list[bytes]:
        """Read present pages, given with their frames."""
        return [ctypes.string_at(self.machine.va(frame * PAGE), PAGE) for _, frame in pages]

    def flags(self, slot: int) -> dict[int, str]:
        """Give the VmFlags of each VMA, by its start."""
        p, moved = self._processes[slot], self._moved[slot]
        return {self._vma(vma, moved).start: " ".join(sorted(vma.vm_flags)) for vma in p.vmas}

    def smaps(self, slot: int) -> str:
        """Give the text of smaps."""
        return self._processes[slot].smaps()

    def mapped_bytes(self, number: int) -> bytes:
        """Give what whoever maps a file finds in it."""
        size = self.files.sizes()[number]
        at = self._outside.mmap(None, max(size, 1), rm.PROT_READ, rm.MAP_SHARED,
                                self.files.fds[number][os.O_RDWR])
        try:
            return self._outside.read(at, size)
        finally:
            self._outside.munmap(at, max(size, 1))

    def sync(self, number: int, offset: int = 0, n: int = MOST_BYTES) -> None:
        """Have what processes stored to a part of a file written to it, as msync() would."""
        status = os.fstat(self.files.fds[number][os.O_RDWR])
        inode = self.machine._paging.mmu.inodes.get((status.st_dev, status.st_ino))
        if inode is not None and offset < status.st_size:
            # Without msync()'s fdatasync(), which takes long.
            assert inode.write_back(offset // PAGE, (offset + n - 1) // PAGE) == 0

    @staticmethod
    def _vma(vma: object, moved: int) -> Vma:
        perms = "".join(letter if vma.prot & bit else "-"
                        for bit, letter in ((1, "r"), (2, "w"), (4, "x")))
        by = moved if is_moved(vma.start + moved) else 0
        return Vma(vma.start + by, vma.end + by, perms + ("s" if vma.flags & 1 else "p"),
                   0, 0, "")

    def _there(self, slot: int, address: int) -> int:
        return address - self._moved[slot] & WORD if is_moved(address) else address

    def _address(self, op: Op, value: int) -> Answer:
        here = value + self._moved[op.slot]
        return Answer("ok", here if is_moved(here) else value)


__all__ = ["LIMITS_AT_FIRST", "RealWorld", "fnv"]
