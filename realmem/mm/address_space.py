"""The only join of VMAs with the kernel side: plan, publish, zap in one step."""

from __future__ import annotations

import errno
import threading
from typing import Any

from realmem._core.mm import AddressSpace as Core
from realmem._core.mm import Mmu
from realmem.errors import HostError, OutOfMemory
from realmem.layout import PAGE_SIZE
from realmem.mm.vma import Change, Vma, VmaSet

# Below the window's top, as a stack would have it (arch/x86/mm/mmap.c:mmap_base()).
STACK_GAP = 128 << 20


class MemoryMap:
    """
    A process's VMAs together with the page tables and the window under them.

    ``lock`` serialises Python-level changes; kernel-side locks are taken below it, in one call
    that runs no bytecode.

    :ivar core: the kernel side's face.
    :ivar vmas: what was promised.
    """

    def __init__(self, core: Core, vmas: VmaSet | None = None) -> None:
        self.core = core
        self.vmas = vmas if vmas is not None else VmaSet()
        self.lock = threading.RLock()

    @classmethod
    def new(cls, mmu: Mmu, pid: int, node: int | None, window: int) -> MemoryMap:
        """Make an empty address space."""
        return cls(Core(mmu, pid, -1 if node is None else node, window))

    @property
    def low(self) -> int:
        """The lowest address that the window holds."""
        return self.core.user_start

    @property
    def high(self) -> int:
        """One past the highest address that the window holds."""
        return self.core.user_start + self.core.length

    @property
    def mmap_base(self) -> int:
        """Where the search for room begins, going down."""
        return self.high - STACK_GAP

    def free_area(self, length: int) -> int | None:
        """Find room for a mapping, as Linux does: top down."""
        return self.vmas.gap_below(length, self.low, self.mmap_base)

    def publish(self, change: Change) -> None:
        """
        Make a planned change on both sides, or on none.

        :raises OSError: ENOMEM, too many VMAs.
        :raises ProcessLookupError: the process exited meanwhile.
        """
        self.core.splice(
            self.vmas.starts,
            self.vmas.vmas,
            change.at,
            change.removed,
            change.added,
            change.start,
            change.end,
        )

    def fork(self, pid: int, node: int | None) -> MemoryMap:
        """
        Make a copy-on-write copy.

        :raises OSError: ENOMEM, no frames for the child's page tables.
        :raises HostError: no host address space for its window.
        """
        with self.lock:
            try:
                core = Core(self.core.mmu, pid, -1 if node is None else node, self.core.length)
            except OutOfMemory as why:
                raise OSError(errno.ENOMEM, "cannot allocate memory") from why
            child = MemoryMap(core, VmaSet(self.vmas.vmas))
            if child.core.user_start != self.core.user_start:
                child.core.exit()
                raise HostError(
                    errno.ENOMEM, "the host has no room for a window as long as the parent's"
                )
            try:
                self.core.fork_into(child.core)
            except BaseException:
                child.core.exit()
                raise
        return child

    def find_vma(self, addr: int) -> Vma | None:
        """Give the VMA that holds ``addr`` or the next one above."""
        return self.vmas.find(addr)

    def close(self, live: dict[int, Any] | None = None) -> None:
        """Give everything back, and leave the live ones in the same step."""
        self.core.exit(live)


def is_aligned(addr: int) -> bool:
    """Whether an address begins a page."""
    return addr % PAGE_SIZE == 0
