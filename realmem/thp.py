"""
Transparent huge pages: which orders anonymous faults try, as sysfs sets them.

Compare mm/huge_memory.c, Documentation/admin-guide/mm/transhuge.rst.
"""

from __future__ import annotations

import errno
import os
import weakref
from typing import Any

from realmem.layout import PAGE_SHIFT
from realmem.watermark import ZONE_NORMAL, nr_free_buffer_pages, thp_min_free_kbytes
from realmem.zonestat import read_zones

PMD_ORDER = 9
# A folio of two pages is not offered: Linux has none of order 1 for anonymous memory's deferred
# splits.
ORDERS = range(2, PMD_ORDER + 1)
TOP_WORDS = ("always", "madvise", "never")
ORDER_WORDS = ("always", "inherit", "madvise", "never")


def boot_thp(machine: Any) -> ThpSettings:
    """Give a machine its switches, all off; once one is on, more memory is kept free."""
    alive = weakref.ref(machine)

    def started() -> None:
        machine = alive()
        if machine is None:
            raise ValueError("the machine is gone")
        zones = [
            (zone.kind, zone.managed, zone.watermark.high)
            for zone in read_zones(machine)
            if zone.managed
        ]
        populated = sum(kind <= ZONE_NORMAL for kind, _, _ in zones)
        room = nr_free_buffer_pages(zones)
        machine.sysctl.refresh_min_free_kbytes(room, thp_min_free_kbytes(populated, room))

    return ThpSettings(started)


def size_name(order: int) -> str:
    """Name an order's directory: ``hugepages-64kB``."""
    return f"hugepages-{1 << (order + PAGE_SHIFT - 10)}kB"


class ThpSettings:
    """
    What ``/sys/kernel/mm/transparent_hugepage`` says.

    :param started: called when huge pages of the PMD's size become possible.
    :ivar enabled: ``"always"``, ``"madvise"`` or ``"never"``.
    :ivar use_zero_page: whether reads of empty memory may bring 2 MiB of zeros.
    :ivar orders: the word of each order: those, or ``"inherit"``.
    """

    def __init__(self, started: Any) -> None:
        self.enabled = "never"
        self.use_zero_page = True
        self.orders = {order: "never" for order in ORDERS}
        self.orders[PMD_ORDER] = "inherit"
        self._started = started
        self._mmu: Any = None

    def attach(self, mmu: Any) -> None:
        """Tell the kernel side, now and whenever something changes."""
        self._mmu = mmu
        self._publish()

    def set_enabled(self, text: str) -> None:
        """
        Set the topmost switch.

        :raises OSError: EINVAL, another word.
        """
        self.enabled = _word(text, TOP_WORDS)
        self._publish()
        self._start()

    def set_order(self, order: int, text: str) -> None:
        """
        Set one order's switch.

        :raises OSError: EINVAL, another word.
        """
        self.orders[order] = _word(text, ORDER_WORDS)
        self._publish()
        self._start()

    def set_use_zero_page(self, text: str) -> None:
        """
        Set ``use_zero_page``.

        :raises OSError: EINVAL, neither 0 nor 1.
        """
        self.use_zero_page = _word(text, ("0", "1")) == "1"
        self._publish()

    def _start(self) -> None:
        # mm/khugepaged.c:start_stop_khugepaged(), which wants more memory kept free.
        if any(word in ("always", "madvise") for word in map(self.state, ORDERS)):
            self._started()

    def state(self, order: int) -> str:
        """Give what is in force for an order: ``"always"``, ``"madvise"`` or ``"never"``."""
        word = self.orders[order]
        return self.enabled if word == "inherit" else word

    def masks(self) -> tuple[int, int]:
        """Give the orders, bit by bit, for all memory, and for memory with MADV_HUGEPAGE."""
        always = sum(1 << order for order in ORDERS if self.state(order) == "always")
        return always, always | sum(
            1 << order for order in ORDERS if self.state(order) == "madvise"
        )

    def _publish(self) -> None:
        if self._mmu is not None:
            masks = self.masks()
            self._mmu.set_folios(*masks)
            # Where none is possible, a read fault need not ask for more.
            self._mmu.set_zero_page(self.use_zero_page and bool(masks[1] >> PMD_ORDER))

    def counts(self) -> tuple[list[int], list[int]]:
        """Give faults by order that got a folio, and that wanted one in vain."""
        if self._mmu is None:
            return [0] * 16, [0] * 16
        allocated, fallen_back = self._mmu.folio_counts
        return list(allocated), list(fallen_back)

    def events(self) -> dict[str, int]:
        """Give what happened to huge pages, by the names in ``/proc/vmstat``."""
        allocated, fallen_back = self.counts()
        events: dict[str, int] = {} if self._mmu is None else self._mmu.huge_events
        return {
            "thp_fault_alloc": allocated[PMD_ORDER],
            "thp_fault_fallback": fallen_back[PMD_ORDER],
            **events,
        }


def choices(words: tuple[str, ...], chosen: str) -> str:
    """Write a switch as sysfs does: ``always [madvise] never``."""
    return " ".join(f"[{word}]" if word == chosen else word for word in words) + "\n"


def _word(text: str, words: tuple[str, ...]) -> str:
    word = text.removesuffix("\n")
    if word not in words:
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL), text)
    return word
