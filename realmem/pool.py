"""
The pool of real memory: one memfd for each simulated node, bound to its host node.

All nodes lie side by side in the direct map, ``va(phys) = direct_map + phys``.  The frames that
hold a node's ``struct page`` array are mapped a second time at ``vmemmap``, so that the page of
any frame is ``vmemmap + pfn * 64``, whatever lies between the nodes.
"""

from __future__ import annotations

import errno
import os
import signal
import struct
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from realmem import placement, preflight
from realmem._core import pool as core
from realmem.errors import HostError
from realmem.host.sysfs import parse_list, read_text
from realmem.layout import PAGE_SIZE, PAGEBLOCK_ORDER, STRUCT_PAGE_SIZE, format_size
from realmem.placement import Placement

CHUNK = 16 << 20  # what the child takes and the parent maps at a time
# A frame's struct page must not share a 4 KiB page of vmemmap with another node's.
NODE_ALIGN = PAGE_SIZE // STRUCT_PAGE_SIZE * PAGE_SIZE
PAGEBLOCK_MEMMAP = STRUCT_PAGE_SIZE << PAGEBLOCK_ORDER

Progress = Callable[[int, int, int], None]


@dataclass(frozen=True)
class PoolNode:
    """
    One node's share: simulated physical range, host node, where its page array lies.

    :ivar bytes: multiple of the page size; 0 for a node without memory.
    :ivar start_phys: multiple of 256 KiB, whose page array fills a 4 KiB page.
    :ivar host_node: to bind it to; None binds it nowhere.
    :ivar memmap_phys: where the node's own ``struct page`` array begins, inside its range.
    :ivar memmap_bytes: its length, whole pages.
    """

    bytes: int
    start_phys: int
    host_node: int | None
    memmap_phys: int
    memmap_bytes: int


class Pool:
    """
    Real memory for simulated nodes, populated and checked.

    It has no finalizer: views of the memory may outlive it, so its owner says when to close.
    After ``os.fork()`` the child does not have the memory.

    :ivar direct_map: host address of simulated physical 0.
    :ivar vmemmap: host address of the ``struct page`` of frame 0.
    :ivar fds: one memfd a node, -1 for a node without memory.
    :ivar placement: one Placement a node.
    :ivar huge_bytes: how much of each node huge pages hold.  With ``"thp"`` it may be less than
        all: the kernel takes 4 KiB pages where it finds no huge one, and at unaligned ends.
    """

    def __init__(
        self,
        nodes: Sequence[PoolNode],
        *,
        backing: str = "4K",
        mlock: bool = False,
        progress: Progress | None = None,
        held: list[Pool] | None = None,
    ) -> None:
        """
        Take the memory.

        With hugetlb backing the page arrays are ordinary 4 KiB memory on the same host node,
        since huge pages cannot be mapped in part; the frames at ``memmap_phys`` stay unused.

        :param nodes: in order of address, not overlapping.
        :param backing: ``"4K"``, ``"thp"``, ``"hugetlb-2M"`` or ``"hugetlb-1G"``.
        :param mlock: keep the host from swapping it.
        :param progress: called with (node index, bytes done, bytes of the node).
        :param held: the pool is appended to it before it takes anything, so that a caller who
            is interrupted before the call returns can close it.
        :raises HostError: the host has not got it or refuses; nothing is kept then.
        :raises ValueError: nodes that are misaligned, overlap, or hold no page array.
        """
        if backing not in preflight.BACKINGS:
            known = ", ".join(preflight.BACKINGS)
            raise ValueError(f"backing must be one of {known}, not {backing!r}")
        self.nodes = tuple(nodes)
        self.backing = backing
        self.page_bytes = preflight.BACKINGS[backing]
        self.hugetlb = backing.startswith("hugetlb")
        _validate(self.nodes, self.page_bytes)
        self.direct_map = self.vmemmap = 0
        self.fds = [-1] * len(self.nodes)
        self._side_fds = [-1] * len(self.nodes)  # page arrays of hugetlb nodes
        self._maps: list[tuple[int, int]] = []
        self._owner = os.getpid()
        self.placement: list[Placement] = []
        self.huge_bytes = [0] * len(self.nodes)
        if held is not None:
            held.append(self)
        try:
            self._take(mlock, progress)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Give everything back; the second time does nothing."""
        maps, self._maps = self._maps, []
        # In a forked child these addresses are not ours: the maps were not inherited.
        if self._owner == os.getpid():
            for where, size in maps:
                core.unmap(where, size)
        self._close_fds()

    def revoke(self) -> None:
        """Give the memory back but keep its addresses reserved until close()."""
        if self._owner == os.getpid():
            for where, size in self._maps:
                core.reserve_at(where, size)
        self._close_fds()

    def _close_fds(self) -> None:
        for fds in (self.fds, self._side_fds):
            for i, fd in enumerate(fds):
                fds[i] = -1
                if fd >= 0:
                    os.close(fd)

    # ---- construction, in order ----

    def _take(self, mlock: bool, progress: Progress | None) -> None:
        first = min((node.start_phys for node in self.nodes if node.bytes), default=0)
        end = max((node.start_phys + node.bytes for node in self.nodes), default=0)
        align = max(2 << 20, self.page_bytes)
        first = first // align * align
        preflight.check(
            [
                preflight.Demand(n.bytes, n.memmap_bytes if self.hugetlb else 0, n.host_node)
                for n in self.nodes
            ],
            (end - first) // PAGE_SIZE * (PAGE_SIZE + STRUCT_PAGE_SIZE) + 2 * align,
            backing=self.backing,
            mlock=mlock,
        )
        if end == first:
            self.placement = [Placement(n.host_node, False, True, 0, None) for n in self.nodes]
            return
        self.direct_map = self._reserve(end - first, align) - first
        memmap_first = first // PAGE_SIZE * STRUCT_PAGE_SIZE
        memmap_end = -(-end // PAGE_SIZE * STRUCT_PAGE_SIZE // PAGE_SIZE) * PAGE_SIZE
        # Aligned so that a struct page's address alone tells its pageblock.
        shift = memmap_first % PAGEBLOCK_MEMMAP
        where = self._reserve(memmap_end - memmap_first + shift, PAGEBLOCK_MEMMAP) + shift
        self.vmemmap = where - memmap_first
        refusals = [self._map(i) for i in range(len(self.nodes))]
        self._populate(progress)
        if mlock:
            self._lock()
        self.placement = [self._verify(i, why) for i, why in enumerate(refusals)]
        if self.backing != "4K":
            self.huge_bytes = [self._huge_bytes(node) for node in self.nodes]

    def _reserve(self, size: int, align: int) -> int:
        try:
            return core.reserve(size, align, self._maps)
        except OSError as error:
            raise HostError(
                error.errno,
                f"cannot reserve {format_size(size)} of address space: {error.strerror}; "
                "raise ulimit -v or ask for less memory",
            ) from None

    def _map(self, i: int) -> str | None:
        """Make and map one node's memfd, bound; give why it could not be bound."""
        node = self.nodes[i]
        if not node.bytes:
            return None
        fd = self._memfd(self.fds, i, f"realmem-node{i}", node.bytes, self.hugetlb)
        where = self.direct_map + node.start_phys
        self._map_at(where, node.bytes, fd, 0, self.backing == "thp")
        refusal = self._bind(where, node.bytes, node.host_node)
        where = self.vmemmap + node.start_phys // PAGE_SIZE * STRUCT_PAGE_SIZE
        offset = node.memmap_phys - node.start_phys
        if self.hugetlb:
            fd = self._memfd(self._side_fds, i, f"realmem-memmap{i}", node.memmap_bytes, False)
            offset = 0
        self._map_at(where, node.memmap_bytes, fd, offset, False)
        if self.hugetlb:
            self._bind(where, node.memmap_bytes, node.host_node)
        return refusal

    def _memfd(self, fds: list[int], i: int, name: str, size: int, huge: bool) -> int:
        flags = os.MFD_CLOEXEC
        if huge:
            flags |= os.MFD_HUGETLB | (self.page_bytes.bit_length() - 1) << os.MFD_HUGE_SHIFT
        try:
            core.memfd(fds, i, name, flags)
            os.ftruncate(fds[i], size)
        except OSError as error:
            hint = {
                errno.EMFILE: "; raise ulimit -n",
                errno.EFBIG: "; raise ulimit -f",
            }.get(error.errno or 0, "")
            raise HostError(
                error.errno, f"cannot make {name} of {format_size(size)}: {error.strerror}{hint}"
            ) from None
        return fds[i]

    def _map_at(self, where: int, size: int, fd: int, offset: int, huge: bool) -> None:
        try:
            core.map_shared(where, size, fd, offset, huge)
        except OSError as error:
            raise HostError(
                error.errno, f"cannot map {format_size(size)} of the pool: {error.strerror}"
            ) from None

    def _bind(self, where: int, size: int, host_node: int | None) -> str | None:
        if host_node is None:
            return "no host node asked for"
        why = core.bind(where, size, host_node)
        if why in placement.REFUSED:
            return f"mbind: {errno.errorcode[why]}"
        if why:
            raise HostError(
                why, f"cannot bind memory to host node {host_node}: {os.strerror(why)}"
            )
        return None

    def _populate(self, progress: Progress | None) -> None:
        """Fill the memfds by a child process; map behind it what it has filled."""
        parts = []  # (node index, fd, bytes, where it is mapped)
        for i, node in enumerate(self.nodes):
            if node.bytes:
                parts.append((i, self.fds[i], node.bytes, self.direct_map + node.start_phys))
            if self._side_fds[i] >= 0:
                where = self.vmemmap + node.start_phys // PAGE_SIZE * STRUCT_PAGE_SIZE
                parts.append((i, self._side_fds[i], node.memmap_bytes, where))
        done = [0] * len(parts)
        huge = self.backing == "thp"
        masks = [_cpu_mask(self.nodes[part[0]].host_node) for part in parts]
        try:
            filler = core.Filler(
                [(part[1], part[2], huge, mask) for part, mask in zip(parts, masks, strict=True)],
                max(CHUNK, self.page_bytes),
            )
        except OSError as error:
            hint = {
                errno.EAGAIN: "; raise ulimit -u or the cgroup's pids.max",
                errno.ENOMEM: "; this process is too large to fork under vm.overcommit_memory 2",
            }.get(error.errno or 0, "")
            raise HostError(
                error.errno, f"cannot start the populating process: {error.strerror}{hint}"
            ) from None
        try:
            for region, kind, value in _messages(filler):
                if kind == core.DONE:
                    filler.wait()
                    break
                i, _, size, where = parts[region]
                if kind == core.FAILED:
                    raise self._failed(i, done[region], value)
                _check_populated(core.populate(where + done[region], value - done[region]), i)
                done[region] = value
                if progress is not None and parts[region][1] == self.fds[i]:
                    progress(i, value, size)
            else:
                raise self._died(parts, done, filler.wait())
        finally:
            filler.stop()
        self._populate_vmemmap()

    def _populate_vmemmap(self) -> None:
        for i, node in enumerate(self.nodes):
            if node.bytes and not self.hugetlb:
                where = self.vmemmap + node.start_phys // PAGE_SIZE * STRUCT_PAGE_SIZE
                _check_populated(core.populate(where, node.memmap_bytes), i)

    def _failed(self, i: int, done: int, why: int) -> HostError:
        node = self.nodes[i]
        on = "" if node.host_node is None else f" on host node {node.host_node}"
        return HostError(
            why,
            f"node {i}: {format_size(done)} of {format_size(node.bytes)} populated{on}, then: "
            f"{os.strerror(why)}; ask for less memory",
        )

    def _died(
        self, parts: Sequence[tuple[int, int, int, int]], done: Sequence[int], status: int
    ) -> HostError:
        region = next((r for r, part in enumerate(parts) if done[r] < part[2]), len(parts) - 1)
        i, _, size, _ = parts[region]
        reached = f"node {i}: {format_size(done[region])} of {format_size(size)} populated"
        if os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL:
            return HostError(
                errno.ENOMEM,
                f"{reached}, then the populating process was killed, as the kernel does when a "
                "cgroup or a node runs out of memory: ask for less, or raise the limit",
            )
        how = f"exit status {os.waitstatus_to_exitcode(status)}"
        if os.WIFSIGNALED(status):
            how = signal.Signals(os.WTERMSIG(status)).name
        return HostError(errno.ECHILD, f"{reached}, then the populating process ended by {how}")

    def _lock(self) -> None:
        for node in self.nodes:
            why = core.lock(self.direct_map + node.start_phys, node.bytes) if node.bytes else 0
            if why:
                raise HostError(
                    why,
                    f"cannot lock {format_size(node.bytes)}: {os.strerror(why)}; "
                    "raise RLIMIT_MEMLOCK (ulimit -l) or leave out mlock",
                )

    def _verify(self, i: int, refusal: str | None) -> Placement:
        node = self.nodes[i]
        if not node.bytes:
            return Placement(node.host_node, False, True, 0, None)
        where = self.direct_map + node.start_phys
        return placement.locate(where, node.bytes, self.page_bytes, node.host_node, refusal)

    def _huge_bytes(self, node: PoolNode) -> int:
        if self.hugetlb or not node.bytes:
            return node.bytes
        return placement.pmd_mapped(self.direct_map + node.start_phys, node.bytes)


def _validate(nodes: Sequence[PoolNode], page_bytes: int) -> None:
    end = 0
    for i, node in enumerate(nodes):
        if not node.bytes:
            continue
        align = max(NODE_ALIGN, page_bytes)
        if node.start_phys % align:
            raise ValueError(f"node {i} starts at {node.start_phys:#x}, no multiple of {align:#x}")
        if node.bytes < 0 or node.bytes % page_bytes:
            raise ValueError(f"node {i}: {node.bytes} bytes are no multiple of {page_bytes}")
        if node.start_phys < end:
            raise ValueError(f"node {i} starts at {node.start_phys:#x}, below {end:#x}")
        end = node.start_phys + node.bytes
        needed = node.bytes // PAGE_SIZE * STRUCT_PAGE_SIZE
        if node.memmap_phys % PAGE_SIZE or node.memmap_bytes % PAGE_SIZE:
            raise ValueError(f"node {i}: its page array is not page-aligned")
        if not needed <= node.memmap_bytes < needed + PAGE_SIZE:
            raise ValueError(f"node {i}: a page array of {needed} bytes, not {node.memmap_bytes}")
        if not node.start_phys <= node.memmap_phys <= end - node.memmap_bytes:
            raise ValueError(f"node {i}: its page array is not in its own memory")


def _messages(filler: core.Filler) -> Iterator[tuple[int, int, int]]:
    size = struct.calcsize(core.MESSAGE)
    while data := os.read(filler.fileno(), 64 * size):
        yield from struct.iter_unpack(core.MESSAGE, data)


def _check_populated(why: int, i: int) -> None:
    if why:
        raise HostError(why, f"node {i}: cannot map its memory: {os.strerror(why)}")


def _cpu_mask(host_node: int | None) -> bytes:
    """Give the CPUs to populate a host node from: its own, else all that are allowed."""
    allowed = os.sched_getaffinity(0)
    path = Path(f"/sys/devices/system/node/node{host_node}/cpulist")
    cpus = allowed.intersection(parse_list(read_text(path))) or allowed
    return sum(1 << cpu for cpu in cpus).to_bytes(512, sys.byteorder)
