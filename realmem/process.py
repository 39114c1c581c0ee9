"""
Simulated processes.

A Machine makes one ProcessTable at its first spawn and delegates to it.
"""

from __future__ import annotations

import errno
import threading
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple

from realmem._core import faults
from realmem._core.check_mm import check_spaces
from realmem._core.own_caches import shrink_process_caches
from realmem._core.pinned import Pin
from realmem._core.space import reap
from realmem.advice import AdviceCalls
from realmem.arguments import as_address, as_int, as_str
from realmem.errors import BusError, SegmentationFault
from realmem.layout import PAGE_SIZE
from realmem.mm.address_space import MemoryMap
from realmem.mm.vma import Vma
from realmem.outside import SeenFromOutside
from realmem.running import Place, RunsSomewhere
from realmem.syscalls import SystemCalls

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, MutableMapping, MutableSet

    from realmem._core.pages import PageAllocator
    from realmem.machine import Machine
    from realmem.paging import Paging

# Bytes that p.read() takes at a time.
READ_STEP = 16 << 20
ENTRY_BITS = {
    0x1: "present",
    0x2: "rw",
    0x4: "user",
    0x20: "accessed",
    0x40: "dirty",
    0x80: "huge",
    0x100: "global",
    0x200: "special",
    0x800: "soft_dirty",
    1 << 63: "nx",
}
PIDS = -(1 << 31), (1 << 31) - 1    # what a pid_t holds
OOM_SCORE_ADJ_MAX = 1000
UID_MAX = (1 << 32) - 2             # the last one is Linux's "no uid"
HOST_SHIFT = 52
TYPE_SHIFT = 59
TYPES = {31: "guard"}            # of entries that map nothing
HOST_STATES = ("none", "noaccess", "read", "write")
PFN_MASK = 0x000FFFFFFFFFF000


class WalkStep(NamedTuple):
    """
    One level of a page-table walk.

    :ivar level: ``"pgd"``, ``"pud"``, ``"pmd"`` or ``"pte"``.
    :ivar address: physical address of the entry.
    :ivar raw: the 64-bit entry, x86-64 format.
    :ivar decoded: ``pfn``, ``flags`` (a frozenset of names) and, at the last level, ``host``:
        what the host has mapped there, which software bits 52 and 53 of the entry keep.  An
        entry that maps nothing, but is not empty, has a ``type``: ``"guard"``.
    """

    level: str
    address: int
    raw: int
    decoded: Mapping[str, object]


def _decode(level: str, raw: int) -> Mapping[str, object]:
    names = ENTRY_BITS
    mapped = raw & ~(3 << HOST_SHIFT)       # an empty one may still say what the host has there
    if mapped and not raw & 0x101:
        # Nothing is mapped: a type, and what that makes of the rest (include/linux/swapops.h).
        kind = raw >> TYPE_SHIFT
        return MappingProxyType({"type": TYPES.get(kind, str(kind)), "flags": frozenset()})
    if not raw & 1 and mapped:
        names = {**ENTRY_BITS, 0x100: "protnone"}       # the global bit of what may be touched
    flags = frozenset(name for bit, name in names.items() if raw & bit)
    decoded: dict[str, object] = {"pfn": (raw & PFN_MASK) >> 12, "flags": flags}
    if level == "pte":
        decoded["host"] = HOST_STATES[raw >> HOST_SHIFT & 3]
    return MappingProxyType(decoded)


class Process(SystemCalls, AdviceCalls, RunsSomewhere, SeenFromOutside):
    """
    A simulated process: an address space of its own, real loads and stores in it.

    Made by ``machine.spawn()`` and ``fork()``.  Methods raise ProcessLookupError once it exited,
    ValueError when its machine is closed or was inherited over ``os.fork()``.

    :ivar pid: its number on its machine, from 1.
    :ivar name: for people.
    :ivar parent: who forked it, or None.
    :ivar uid: 0 has every capability.
    """

    def __init__(
        self,
        table: ProcessTable,
        pid: int,
        name: str,
        parent: Process | None,
        node: int | None,
        uid: int,
        mm: MemoryMap,
    ) -> None:
        self.pid = pid
        self.name = name
        self.parent = parent
        self.uid = uid
        self._table = table
        self._places = [Place(node)]
        self._children: dict[int, Process] = {}
        self._status: int | None = None
        self.mm = mm
        self._oom_score_adj: int = 0 if parent is None else parent._oom_score_adj

    def __repr__(self) -> str:
        state = "" if self._status is None else ", exited"
        return f"<Process {self.pid} {self.name!r}{state}>"

    # ---- life ----

    @property
    def children(self) -> list[Process]:
        """Children that were not waited for yet, by pid."""
        return [self._children[pid] for pid in sorted(self._children)]

    def fork(self, name: str | None = None) -> Process:
        """
        Make a child that shares every page, copy-on-write.

        Compare kernel/fork.c:copy_process() => dup_mmap().

        :param name: of the child; None takes the parent's.
        :raises OSError: ENOMEM, no frames for the child's page tables; the parent lost nothing.
        """
        self.mm.core.check_alive()
        return self._table.fork(self, self.name if name is None else as_str(name, "name"))

    def exit(self, code: int = 0) -> None:
        """
        End the process: everything it had goes back at once.

        Views of its memory may live on; an access through them is SEGV_MAPERR.
        """
        self.mm.core.check_alive()
        self._table.exit(self, (as_int(code, "code") & 0xFF) << 8)

    def wait(self, pid: int = -1) -> tuple[int, int]:
        """
        Wait for a child to exit, and forget it.

        :param pid: of the child; -1 is any.
        :return: its pid and status, as waitpid(2) gives it.
        :raises ChildProcessError: there is no such child.
        """
        self.mm.core.check_alive()
        return self._table.wait(self, as_int(pid, "pid", *PIDS))

    # ---- what it may ----

    @property
    def rlimit(self) -> MutableMapping[str, int]:
        """Resource limits AS, DATA, STACK and MEMLOCK in bytes, or RLIM_INFINITY."""
        return self.mm.rlimit

    @property
    def capabilities(self) -> MutableSet[str]:
        """Capabilities by name; uid 0 starts with all, others with none."""
        return self.mm.capabilities

    @capabilities.setter
    def capabilities(self, names: Iterable[str]) -> None:
        self.mm.capabilities.replace(names)

    @property
    def oom_score_adj(self) -> int:
        """What the OOM killer adds to its score, -1000 to 1000; a child takes its parent's."""
        return self._oom_score_adj

    @oom_score_adj.setter
    def oom_score_adj(self, value: int) -> None:
        self.mm.core.check_alive()
        number = as_int(value, "oom_score_adj")
        if not -OOM_SCORE_ADJ_MAX <= number <= OOM_SCORE_ADJ_MAX:
            raise OSError(errno.EINVAL, f"oom_score_adj out of range: {number}")
        if number < self._oom_score_adj and not self.mm.capable("CAP_SYS_RESOURCE"):
            raise PermissionError(errno.EACCES, "lowering oom_score_adj takes CAP_SYS_RESOURCE")
        self._oom_score_adj = number

    @property
    def mems_allowed(self) -> frozenset[int]:
        """The nodes that it may get memory from: all that have any."""
        return self._table.mems_allowed

    # ---- touching memory ----

    def view(self, addr: int, length: int) -> memoryview:
        """
        Give a memoryview of the live window: loads and stores in it are real, and fault.

        Keep the accesses in ``with p.guard():`` to have forbidden ones raised there.

        :raises ValueError: the range is not all in the process's window.
        """
        view: memoryview = self.mm.core.view(as_address(addr), as_address(length, "length"))
        return view

    def host_address(self, addr: int) -> int:
        """
        Give the host address of one of the process's own, for ctypes or Cython.

        It is good until the process exits; a view keeps its window in place even then.

        :raises ValueError: it is not in the process's window.
        """
        return int(self.mm.core.host_address(as_address(addr)))

    def guard(self) -> faults.Guard:
        """
        Give a context manager that raises forbidden raw accesses of this thread at its end.

        :raises SegmentationFault: at the end of the ``with`` block, for the first of them.
        """
        self.mm.core.check_alive()
        return faults.Guard(self.mm.core.id)

    def pin(self, addr: int, length: int, write: bool = False) -> Pin:
        """
        Give a context manager whose view of a range a host system call may be handed.

        Its frames stay, and stay mapped by the host: nothing is flushed or copied away, and a
        fork copies them for the child.  (Only when the host refuses every other mapping is
        even that given up.)  Compare mm/gup.c:pin_user_pages().

        :param length: bytes; any range that lies in one window.
        :param write: whether the call is to write there; else the view is read-only.
        :raises SegmentationFault: on entry, at the first address that may not be accessed so.
        :raises BusError: on entry, past the end of what is mapped.
        """
        self.mm.core.check_alive()
        return Pin(self.mm.core, as_address(addr), as_address(length, "length"), bool(write))

    def read(self, addr: int, n: int) -> bytes:
        """
        Read bytes by the software MMU: no signal, no host mapping.

        :raises SegmentationFault: at the first address it may not read.
        :raises BusError: at the first that nothing is behind.
        """
        addr, left = as_address(addr), as_address(n, "length")
        parts: list[bytes] = []
        done = 0
        # In steps, so that an absurd length ends at the first address that is not there.
        while left > 0:
            step = min(left, READ_STEP)
            try:
                parts.append(self.mm.core.access(addr + done, None, step))
            except (SegmentationFault, BusError) as error:
                error.done += done
                raise
            done += step
            left -= step
        if not parts:
            self.mm.core.check_alive()
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def write(self, addr: int, data: bytes | bytearray | memoryview) -> None:
        """
        Write bytes by the software MMU; copy-on-write is broken as by a store.

        :raises SegmentationFault: at the first address it may not write; what comes before is
            written.
        """
        with memoryview(data) as view, view.cast("B") as plain:
            self.mm.core.access(as_address(addr), plain, len(plain))

    def touch(self, addr: int, length: int, write: bool = False) -> None:
        """
        Access each page of a range once by the software MMU; a write changes no byte.

        :raises SegmentationFault: at the first address it may not touch.
        """
        self.mm.core.touch(as_address(addr), as_address(length, "length"), bool(write))

    def fill(self, addr: int, length: int, byte: int) -> None:
        """
        Set every byte of a range by the software MMU.

        :param byte: 0 to 255.
        :raises SegmentationFault: at the first address it may not write.
        """
        self.mm.core.fill(
            as_address(addr), as_address(length, "length"), as_int(byte, "byte", 0, 255)
        )

    def access(self, addresses: Any, writes: Any = False) -> None:
        """
        Access one byte at each address by the software MMU, all in one call; no byte changes.

        :param addresses: sequence or array, shape (n,), integers.
        :param writes: whether they are writes: one for all, or shape (n,).
        :raises SegmentationFault: at the first that may not be; ``done`` accesses came before it.
        """
        import numpy as np

        where = np.asarray(addresses)
        if where.size and where.dtype.kind not in "iu":
            raise TypeError(f"addresses must be integers, not {where.dtype}")
        if where.ndim != 1:
            raise ValueError(f"addresses must have shape (n,), not {where.shape}")
        if where.dtype.kind == "i" and where.size and int(where.min()) < 0:
            raise ValueError("a negative address")
        kinds = np.broadcast_to(np.asarray(writes, dtype=bool), where.shape)
        # Copies: in a window they would fault under the lock that their faults wait for.
        self.mm.core.access_all(where.astype(np.uint64), kinds.astype(np.uint8))

    def populate(self, addr: int, length: int, write: bool = False) -> None:
        """
        Fault a range in; nothing is promised once it returned.

        :raises SegmentationFault: at the first address that may not be accessed so.
        :raises OutOfMemory: no frame for it.
        """
        self.touch(addr, length, write)

    # ---- looking ----

    @property
    def vmas(self) -> list[Vma]:
        """The VMAs in address order."""
        self.mm.core.check_alive()
        return list(self.mm.tree)

    def find_vma(self, addr: int) -> Vma | None:
        """Give the VMA that holds ``addr``, or the next one above (mm/mmap.c:find_vma())."""
        self.mm.core.check_alive()
        return self.mm.find_vma(as_address(addr))

    def walk(self, addr: int) -> list[WalkStep]:
        """Walk the page tables for an address, kernel half included."""
        return [
            WalkStep(level, where, raw, _decode(level, raw))
            for level, where, raw in self.mm.core.walk(as_address(addr))
        ]

    @property
    def rss(self) -> int:
        """Pages that its page tables map, the zero page excepted."""
        counts = self.mm.core.rss       # once: reclaim may be at work
        return int(sum(counts) - counts[2])

    @property
    def swap(self) -> int:
        """Pages that are swapped out."""
        return int(self.mm.core.rss[2])

    @property
    def min_flt(self) -> int:
        """Faults served without I/O."""
        return int(self.mm.core.faults[0])

    @property
    def maj_flt(self) -> int:
        """Faults that had to wait for I/O."""
        return int(self.mm.core.faults[1])


class ProcessTable:
    """
    The processes of one machine.

    :param core: the machine's allocator.
    :param paging: what its address spaces are made from.
    :param machine: gives whose they are, while it is there.
    :param kind: the class of its processes.
    :ivar live: those that have not exited, by pid.
    """

    def __init__(
        self,
        core: PageAllocator,
        paging: Paging,
        machine: Callable[[], Machine | None],
        kind: type[Process] = Process,
    ) -> None:
        self._core = core
        self._kind = kind
        self.machine = machine
        self._paging = paging
        self.live: dict[int, Process] = {}
        self._exited = threading.Condition(threading.RLock())
        self._next_pid = 1
        self._granted = paging.window
        self._closed = False

    def spawn(self, name: str = "init", node: int | None = None, uid: int = 0) -> Process:
        """
        Start a process with an empty address space; the first one installs the fault handler.

        :param name: for people.
        :param node: where its software accesses allocate from; None is the calling CPU's node.
        :param uid: 0 has every capability.
        :raises OutOfMemory: no frames for its page tables.
        :raises HostError: no host address space for its window, or a backing it cannot map.
        :raises ValueError: closed machine or unknown node.
        """
        self._core.check_alive()
        name, uid = as_str(name, "name"), as_int(uid, "uid", 0, UID_MAX)
        if node is not None:
            node = as_int(node, "node")
            if not 0 <= node < self._paging.nr_nodes:
                raise ValueError(f"no node {node}: this machine has {self._paging.nr_nodes}")
        mmu = self._paging.start()
        reap()
        with self._exited:
            self._check_open()
            try:
                mm = MemoryMap.new(
                    mmu, self._next_pid, node, self._paging.window, self._paging.settings, uid
                )
            except BaseException:
                self._tidy()
                raise
            return self._add(name, None, node, uid, mm)

    def fork(self, parent: Process, name: str) -> Process:
        """Make a copy-on-write child."""
        reap()
        with self._exited:
            self._check_open()
            mm = parent.mm.fork(self._next_pid, parent._node)
            return self._add(name, parent, parent._node, parent.uid, mm)

    def _check_open(self) -> None:
        if self._closed:
            raise ValueError("this machine is closed")

    def _add(
        self, name: str, parent: Process | None, node: int | None, uid: int, mm: MemoryMap
    ) -> Process:
        process = self._kind(self, self._next_pid, name, parent, node, uid, mm)
        self._next_pid += 1
        self._granted = min(self._granted, mm.core.length)
        self.live[process.pid] = process
        if parent is not None:
            parent._children[process.pid] = process
        return process

    def exit(self, process: Process, status: int) -> None:
        """End a process; its children go to process 1, if there is one, else to nobody."""
        with self._exited:
            # All of it can be done again, should a signal come: until the last step, which is one.
            process._status = status
            init = None if process.pid == 1 else self.live.get(1)
            for child in process._children.values():
                child.parent = init
                if init is not None:
                    init._children[child.pid] = child
            process._children = {}
            self._exited.notify_all()       # who waits sees it when the lock is given up
            process.mm.close(self.live)
            self._tidy()
        reap()

    def _tidy(self) -> None:
        """Leave no slabs behind when the last process has gone."""
        if not self.live:
            shrink_process_caches(self._core)

    def wait(self, parent: Process, pid: int) -> tuple[int, int]:
        """Wait until a child has exited."""
        with self._exited:
            while True:
                children = [c for c in parent._children.values() if pid in (-1, c.pid)]
                if not children:
                    raise ChildProcessError(errno.ECHILD, "no child processes")
                for child in children:
                    if child._status is not None:
                        del parent._children[child.pid]
                        return child.pid, child._status
                self._exited.wait()
                parent.mm.core.check_alive()

    # ---- the machine's other questions ----

    @property
    def mems_allowed(self) -> frozenset[int]:
        """Nodes with memory."""
        return self._paging.nodes_with_memory

    @property
    def exports(self) -> int:
        """Live views of windows."""
        return sum(p.mm.core.exports for p in list(self.live.values()))

    def hoststat(self) -> dict[str, int]:
        """
        Count what windows cost the host.

        ``window`` is the smallest window that a process had to make do with, in bytes;
        ``lost_reports`` are forbidden accesses that found no room to be recorded.
        """
        return {
            "window": self._granted,
            "lost_reports": faults.lost(),
        }

    def mappings_of(self, pfn: int) -> list[tuple[int, int]]:
        """List the (pid, address) pairs whose page tables map a frame."""
        mmu = self._paging.mmu
        return [] if mmu is None else mmu.places_of(pfn)

    def check(self) -> None:
        """
        Recount every page table, mapping and count, those of the vmalloc area included.

        :raises InvariantError: names the first that is wrong.
        """
        with self._exited:      # nobody is half born or half gone
            if self._paging.mmu is not None:
                check_spaces(self._paging.mmu, [p.mm.core for p in self.live.values()])

    def close(self) -> None:
        """End every process; views answer SEGV_MAPERR."""
        with self._exited:
            self._closed = True
            for process in list(self.live.values()):
                process.mm.close()
                process._status = 9
            self.live.clear()
            self._exited.notify_all()
        reap()


__all__ = ["PAGE_SIZE", "Process", "ProcessTable", "WalkStep"]
