"""What a machine's sysctls say to system calls; one for all processes of a machine."""

from __future__ import annotations

import threading
from typing import Any

from realmem.arguments import as_str
from realmem.layout import PAGE_SIZE

OVERCOMMIT_GUESS, OVERCOMMIT_ALWAYS, OVERCOMMIT_NEVER = range(3)
KB_TO_PAGES = 2                     # a shift
# By the numbers of _kernel/mempolicy.pxd.
COW_PLACEMENTS = ("policy", "local", "source")
INT_MAX = 2**31 - 1
LONG_MAX = 2**63 - 1

# The sysctls by name: the least and the most that each may be.
RANGES = {
    "vm.admin_reserve_kbytes": (0, LONG_MAX),
    "vm.max_map_count": (0, INT_MAX),
    "vm.mmap_min_addr": (0, LONG_MAX),
    "vm.overcommit_kbytes": (0, LONG_MAX),
    "vm.overcommit_memory": (OVERCOMMIT_GUESS, OVERCOMMIT_NEVER),
    "vm.overcommit_ratio": (-INT_MAX - 1, INT_MAX),
    "vm.page-cluster": (0, 31),
    "vm.swappiness": (0, 200),
    "vm.user_reserve_kbytes": (0, LONG_MAX),
}


def attribute(name: str) -> str:
    """Give the attribute of VmSettings that holds a sysctl."""
    return name.removeprefix("vm.").replace("-", "_")


class VmSettings:
    """
    The vm sysctls that system calls read, by their names without ``vm.``.

    :param total_pages: of the machine; the reserves start at a 32nd of it at most, as Linux's
        (mm/mmap.c:init_user_reserve()).
    :ivar stack_guard_gap: bytes (a boot option of Linux, in pages).
    :ivar cow_placement: where copies go, one of COW_PLACEMENTS.
    :ivar mmu: the kernel side that was told, or None.
    """

    def __init__(self, total_pages: int = 1 << 30) -> None:
        kbytes = total_pages << KB_TO_PAGES
        self.admin_reserve_kbytes = min(kbytes // 32, 1 << 13)
        self.max_map_count = 65530
        self.mmap_min_addr = 65536
        self.overcommit_kbytes = 0
        self.overcommit_memory = OVERCOMMIT_GUESS
        self.overcommit_ratio = 50
        self.swappiness = 60
        self.page_cluster = 3
        self.user_reserve_kbytes = min(kbytes // 32, 1 << 17)
        self.stack_guard_gap = 256 * PAGE_SIZE
        self.cow_placement = COW_PLACEMENTS[0]
        self.mmu: Any = None
        self._lock = threading.Lock()

    def commit_limit(self, total_pages: int, swap_pages: int = 0) -> int:
        """Give CommitLimit in pages (mm/util.c:vm_commit_limit())."""
        if self.overcommit_kbytes:
            return (self.overcommit_kbytes >> KB_TO_PAGES) + swap_pages
        return total_pages * self.overcommit_ratio // 100 + swap_pages

    def attach(self, mmu: Any) -> None:
        """Tell the kernel side, now and whenever something changes."""
        with self._lock:
            self.mmu = mmu
            self._publish()

    def publish(self) -> None:
        """Tell the kernel side again: the swap areas are others."""
        with self._lock:
            self._publish()

    def set(self, name: str, value: int) -> None:
        """Set a sysctl that is within its range."""
        with self._lock:
            setattr(self, attribute(name), value)
            # The one that was written last counts (mm/util.c:overcommit_ratio_handler()).
            if name == "vm.overcommit_ratio":
                self.overcommit_kbytes = 0
            elif name == "vm.overcommit_kbytes":
                self.overcommit_ratio = 0
            self._publish()

    def set_cow_placement(self, where: str) -> None:
        """Say where copies go: one of COW_PLACEMENTS."""
        if as_str(where, "cow_placement") not in COW_PLACEMENTS:
            raise ValueError(f"cow_placement must be one of {COW_PLACEMENTS}, not {where!r}")
        with self._lock:
            self.cow_placement = where
            self._publish()

    def _publish(self) -> None:
        mmu = self.mmu
        if mmu is not None:
            swap = mmu.swap_counts[0]
            mmu.set_overcommit(
                self.overcommit_memory,
                min(self.commit_limit(mmu.total_pages - swap, swap), LONG_MAX),
                self.admin_reserve_kbytes >> KB_TO_PAGES,
                self.user_reserve_kbytes >> KB_TO_PAGES,
            )
            mmu.set_layout(self.mmap_min_addr, self.stack_guard_gap)
            mmu.set_swapping(self.swappiness, self.page_cluster)
            mmu.set_cow_node(COW_PLACEMENTS.index(self.cow_placement))
