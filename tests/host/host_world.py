"""
The world of the host kernel: every process is a driver, looked at through /proc.

/proc/PID/mem is read rather than process_vm_readv(2) called: the latter pins, and a pin of a page
that is shared copy-on-write copies it, so that looking would change what is seen.  Pages that are
not present are not read at all: reading would make them present.
"""

from __future__ import annotations

import os
import re
import resource
import struct
import time
from array import array
from pathlib import Path

from host import driver
from host.driver import Drivers
from host.files import Files
from host.ops import BASE, INFINITY, NOBODY, PAGE, WORD, Answer, Look, Op, Vma, is_moved

NR = {"mmap": 9, "mprotect": 10, "munmap": 11, "brk": 12, "mremap": 25, "msync": 26,
      "mincore": 27, "madvise": 28, "mlock": 149, "munlock": 150, "mlockall": 151,
      "munlockall": 152, "prctl": 157, "mlock2": 325, "process_madvise": 440, "mseal": 462}
NR_CLOSE, NR_CAPSET, NR_PIDFD_OPEN = 3, 126, 434
PR_SET_VMA, PR_SET_THP_DISABLE, PR_THP_INHERITED = 0x53564D41, 41, 1
CAP_IPC_LOCK = 14
RLIMITS = {"AS": resource.RLIMIT_AS, "DATA": resource.RLIMIT_DATA,
           "STACK": resource.RLIMIT_STACK, "MEMLOCK": resource.RLIMIT_MEMLOCK}
LIMITS_AT_FIRST = {"AS": INFINITY, "DATA": INFINITY, "STACK": 8 << 20, "MEMLOCK": 8 << 20}
# Pagemap bits that are compared: present, swapped, file or shared, guard, mapped once.
PRESENT, SWAPPED, SHARED, GUARD, ONCE = 1 << 63, 1 << 62, 1 << 61, 1 << 58, 1 << 56
WORD_MASK = PRESENT | SWAPPED | SHARED | GUARD | ONCE
PFN = (1 << 55) - 1
MOST_PAGES = 4096               # of a VMA that is looked at page by page
STATUS = re.compile(rb"^(VmSize|VmLck|VmData):\s+(\d+) kB", re.MULTILINE)


def read_all(fd: int) -> bytes:
    """Read a /proc file from its beginning."""
    parts, at = [], 0
    while part := os.pread(fd, 1 << 16, at):
        parts.append(part)
        at += len(part)
    return b"".join(parts)


def parse_maps(text: str, moved: int, numbers: dict[str, int]) -> list[Vma]:
    """Read maps lines; `moved` is added to addresses, `numbers` gives objects by their place."""
    vmas = []
    for line in text.splitlines():
        span, perms, offset, device, inode, *name = line.split(None, 5)
        start, end = (int(word, 16) for word in span.split("-"))
        by = moved if is_moved(start + moved) else 0
        number = 0
        if inode != "0":
            number = numbers.setdefault(f"{device} {inode}", len(numbers) + 1)
        vmas.append(Vma(start + by, end + by, perms, int(offset, 16), number,
                        name[0] if name else ""))
    return vmas


def parse_flags(text: str, moved: int) -> dict[int, str]:
    """Read the VmFlags of each VMA from smaps."""
    found, start = {}, 0
    for line in text.splitlines():
        if line.startswith("VmFlags:"):
            found[start] = " ".join(sorted(line.split()[1:]))
        elif "-" in (head := line.split(None, 1)[0]):
            start = int(head.split("-")[0], 16)
            start += moved if is_moved(start + moved) else 0
    return found


class _Process:
    """What is kept of a driver: open /proc files and what was set for it."""

    def __init__(self, pid: int, limits: dict[str, int], capable: bool) -> None:
        self.pid = pid
        self.limits = dict(limits)
        self.capable = capable
        self.maps, self.status, self.smaps, self.pagemap, self.mem = (
            os.open(f"/proc/{pid}/{name}", os.O_RDONLY)
            for name in ("maps", "status", "smaps", "pagemap", "mem"))

    def close(self) -> None:
        for fd in (self.maps, self.status, self.smaps, self.pagemap, self.mem):
            os.close(fd)


class HostWorld:
    """
    Processes of the kernel that this runs on.

    :param distance: how far below the top of the mmap area heaps begin.
    :param thp: whether they have huge pages.
    :param folder: where its files are to lie.
    :ivar base: where that top is.
    :ivar names: whether VMAs can be given names.
    """

    def __init__(self, distance: int, thp: bool = False, folder: str | None = None) -> None:
        probe = Drivers(0)
        self.base = self._top(probe)
        probe.close()
        self.files = Files(folder)
        self.drivers = Drivers(self.base - distance, [fd for fds in self.files.fds for fd in fds])
        self._moved = BASE - self.base
        self._numbers: dict[str, int] = {}
        self._processes: dict[int, _Process] = {}
        self.drivers.call(0, NR["prctl"], PR_SET_THP_DISABLE, 0 if thp else 1, 0, 0, 0)
        self.names = self.drivers.call(0, NR["prctl"], PR_SET_VMA, 0, driver.LOW, PAGE, 0) == 0
        for name, soft in LIMITS_AT_FIRST.items():
            driver.set_rlimit(self.drivers.pids[0], RLIMITS[name], soft)
        self.may_set_capabilities = self.drivers.call(0, NR_CAPSET, *self._capset(True)[0],
                                                      more=self._capset(True)[1]) == 0

    @staticmethod
    def _top(drivers: Drivers) -> int:
        at = drivers.call(0, NR["mmap"], 0, PAGE, 0, 0x22, -1, 0)
        drivers.call(0, NR["munmap"], at, PAGE)
        return at + PAGE

    def reset(self) -> None:
        """End every process."""
        for slot in list(self._processes):
            self._end(slot)
        self._numbers.clear()
        self.files.reset()

    def close(self) -> None:
        """End every process and what they come from."""
        for process in self._processes.values():
            process.close()
        self.drivers.close()
        self.files.close()

    # ---- steps ----

    def apply(self, op: Op) -> Answer:
        """Take a step."""
        if op.slot == NOBODY:
            getattr(self.files, op.name)(*op.args)
            return Answer("ok")
        if op.name == "spawn":
            self._born(0, op.slot, LIMITS_AT_FIRST, self.may_set_capabilities)
            return Answer("ok")
        if op.name == "fork":
            parent = self._processes[op.slot]
            return self._born(op.slot, _int(op.args[0]), parent.limits, parent.capable)
        if op.name == "exit":
            self._end(op.slot)
            return Answer("ok")
        if op.name in ("read", "write", "touch"):
            return self._access(op)
        if op.name == "rlimit":
            return self._rlimit(op.slot, str(op.args[0]), _int(op.args[1]))
        if op.name == "capability":
            words, more = self._capset(bool(op.args[1]))
            ret = self.drivers.call(op.slot, NR_CAPSET, *words, more=more)
            self._processes[op.slot].capable = bool(op.args[1])
            return _answer(ret)
        return getattr(self, f"_{op.name}", self._call)(op)              # type: ignore[no-any-return]

    def _call(self, op: Op) -> Answer:
        args = [self._there(_int(arg)) for arg in op.args]
        return _answer(self.drivers.call(op.slot, NR[op.name], *args))

    def _mmap(self, op: Op) -> Answer:
        addr, length, prot, flags, offset, *file = (_int(arg) for arg in op.args)
        fd = self.files.fds[file[0]][file[1]] if file else -1
        ret = self.drivers.call(op.slot, NR["mmap"], self._there(addr), length, prot, flags, fd,
                                offset)
        return self._address(ret)

    def _mremap(self, op: Op) -> Answer:
        old, old_size, new_size, flags, new = (_int(arg) for arg in op.args)
        return self._address(self.drivers.call(op.slot, NR["mremap"], self._there(old), old_size,
                                               new_size, flags, self._there(new)))

    def _brk(self, op: Op) -> Answer:
        return self._address(self.drivers.call(op.slot, NR["brk"],
                                               self._there(_int(op.args[0]))))

    def _mincore(self, op: Op) -> Answer:
        addr, length = (_int(arg) for arg in op.args)
        ret = self.drivers.call(op.slot, NR["mincore"], self._there(addr), length, driver.OUT)
        if ret < 0:
            return _answer(ret)
        pages = length + PAGE - 1 >> 12
        return Answer("ok", os.pread(self._processes[op.slot].mem, pages, driver.OUT))

    def _process_madvise(self, op: Op) -> Answer:
        ranges, advice = op.args
        assert isinstance(ranges, tuple)
        more = b"".join(struct.pack("<QQ", self._there(addr), length) for addr, length in ranges)
        fd = self.drivers.call(op.slot, NR_PIDFD_OPEN, self._processes[op.slot].pid, 0)
        ret = self.drivers.call(op.slot, NR["process_madvise"], fd, driver.MORE, len(ranges),
                                _int(advice), 0, more=more)
        self.drivers.call(op.slot, NR_CLOSE, fd)
        return _answer(ret, number=True)

    def _mlockall(self, op: Op) -> Answer:
        # Our own pages count against the limit while all is looked at, and are let go again.
        process = self._processes[op.slot]
        limit = process.limits["MEMLOCK"]
        if limit not in (0, INFINITY):
            driver.set_rlimit(process.pid, RLIMITS["MEMLOCK"], limit + driver.OWN_BYTES)
        ret = self.drivers.call(op.slot, NR["mlockall"], _int(op.args[0]))
        self.drivers.call(op.slot, NR["munlock"], driver.LOW, driver.OWN_BYTES)
        if limit not in (0, INFINITY):
            driver.set_rlimit(process.pid, RLIMITS["MEMLOCK"], limit)
        return _answer(ret)

    def _prctl(self, op: Op) -> Answer:
        option, *args = op.args
        if option == PR_SET_VMA and len(args) == 4:
            name = args[3]
            where = 0 if name is None else driver.MORE
            more = b"" if name is None else str(name).encode() + b"\0"
            words = [_int(args[0]), self._there(_int(args[1])), _int(args[2]), where]
            ret = self.drivers.call(op.slot, NR["prctl"], PR_SET_VMA, *words, more=more)
            return _answer(ret)
        words = [_int(arg) for arg in args] + [0] * (4 - len(args))
        ret = self.drivers.call(op.slot, NR["prctl"], _int(option), *words)
        return _answer(ret, number=ret > 0)

    def _rlimit(self, slot: int, name: str, soft: int) -> Answer:
        process = self._processes[slot]
        own = {"AS": driver.OWN_BYTES, "DATA": driver.DATA_BYTES}.get(name, 0)
        driver.set_rlimit(process.pid, RLIMITS[name], min(soft + own, INFINITY))
        process.limits[name] = soft
        return Answer("ok")

    def _access(self, op: Op) -> Answer:
        address, n = self._there(_int(op.args[0])), _int(op.args[1])
        kind = {"read": driver.LOAD, "write": driver.STORE, "touch": driver.TOUCH}[op.name]
        reply = self.drivers.command(op.slot, kind, 0, address, n, _int(op.args[2]))
        if reply.sig:
            done = None if op.name == "touch" else reply.ret
            return Answer("fault" if reply.sig == 11 else "bus error", reply.code,
                          _int(op.args[0]) + reply.address - address, done)
        return Answer("ok", reply.hash if op.name == "read" else None)

    @staticmethod
    def _capset(capable: bool) -> tuple[tuple[int, int], bytes]:
        # struct __user_cap_header_struct (version 3), two __user_cap_data_struct
        mine = re.search(r"CapPrm:\s*([0-9a-f]+)", Path("/proc/self/status").read_text())
        assert mine is not None
        permitted = int(mine[1], 16)
        effective = permitted if capable else permitted & ~(1 << CAP_IPC_LOCK)
        data = struct.pack("<Ii", 0x20080522, 0)
        for shift in (0, 32):
            data += struct.pack("<3I", effective >> shift & 0xFFFFFFFF,
                                permitted >> shift & 0xFFFFFFFF, 0)
        return (driver.MORE, driver.MORE + 8), data

    def _born(self, parent: int, slot: int, limits: dict[str, int], capable: bool) -> Answer:
        pid = self.drivers.fork(parent, slot)
        if pid < 0:
            return _answer(pid)
        self._processes[slot] = _Process(pid, limits, capable)
        return Answer("ok")

    def _end(self, slot: int) -> None:
        self._processes.pop(slot).close()
        self.drivers.end(slot)

    # ---- looking ----

    def look(self, slot: int) -> Look:
        """See what there is of a process."""
        process = self._processes[slot]
        lines = read_all(process.maps).decode().splitlines(keepends=True)
        kept = "".join(line for line in lines if not self._is_ours(line))
        vmas = parse_maps(self.files.shorten(kept), self._moved, self._numbers)
        found = {name: int(kb) // 4 for name, kb in STATUS.findall(read_all(process.status))}
        counts = (found[b"VmLck"], found[b"VmSize"] - driver.OWN_BYTES // PAGE,
                  found[b"VmData"] - driver.DATA_BYTES // PAGE)
        words: list[tuple[int, ...] | None] = []
        frames: list[tuple[int, ...] | None] = []
        for vma in vmas:
            pages = (vma.end - vma.start) // PAGE
            if pages > MOST_PAGES:
                words.append(None)
                frames.append(None)
                continue
            raw = self._pagemap(process, vma.start, pages)
            words.append(tuple([word & WORD_MASK for word in raw]))
            frames.append(tuple([word & PFN if word & PRESENT else -1 for word in raw]))
        return Look(tuple(vmas), counts, tuple(words), tuple(frames))

    def _pagemap(self, process: _Process, start: int, pages: int) -> array[int]:
        """Read it; what the host migrates, as compaction does, looks swapped for a moment."""
        for _ in range(200):
            raw = array("Q", os.pread(process.pagemap, 8 * pages, self._there(start) // PAGE * 8))
            if not any(word & SWAPPED and not word & GUARD for word in raw):
                break
            time.sleep(0.001)
        return raw

    def contents(self, slot: int, pages: list[tuple[int, int]]) -> list[bytes]:
        """Read present pages, given with their frames."""
        fd = self._processes[slot].mem
        return [os.pread(fd, PAGE, self._there(address)) for address, _ in pages]

    def flags(self, slot: int) -> dict[int, str]:
        """Give the VmFlags of each VMA, by its start."""
        found = parse_flags(read_all(self._processes[slot].smaps).decode(), self._moved)
        return {start: flags for start, flags in found.items()
                if start not in driver.OWN and start < 1 << 63}

    def smaps(self, slot: int) -> str:
        """Give the text of smaps."""
        return read_all(self._processes[slot].smaps).decode()

    def mapped_bytes(self, number: int) -> bytes:
        """Give what whoever maps a file finds in it."""
        return self.files.read(number)

    def sync(self, number: int) -> None:
        """Have what processes stored to a file written to it: it is at once."""

    def _is_ours(self, line: str) -> bool:
        start = int(line.split("-", 1)[0], 16)
        return (start in driver.OWN or line.endswith("[vsyscall]\n")
                or any(start == first for first, _ in self.drivers.foreign))

    def _there(self, address: int) -> int:
        return address - self._moved & WORD if is_moved(address) else address & WORD

    def _here(self, address: int) -> int:
        moved = address + self._moved
        return moved if is_moved(moved) else address

    def _address(self, ret: int) -> Answer:
        return _answer(ret) if -4096 < ret < 0 else Answer("ok", self._here(ret))


def _int(value: object) -> int:
    assert isinstance(value, int), value
    return value


def _answer(ret: int, number: bool = False) -> Answer:
    if -4096 < ret < 0:
        return Answer("errno", -ret)
    return Answer("ok", ret if number else None)
