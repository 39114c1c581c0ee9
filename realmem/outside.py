"""What a process looks like from outside: the texts of its files, its pages' words, a picture."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from realmem.layout import PAGE_SHIFT

if TYPE_CHECKING:
    from collections.abc import Callable

    from realmem.mm.address_space import MemoryMap

PAGE_OFFSET = 0xFFFF888000000000
VMALLOC_START = 0xFFFFC90000000000


class SeenFromOutside:
    """The part of Process that changes nothing."""

    if TYPE_CHECKING:
        mm: MemoryMap

    def maps(self) -> str:
        """Give the text of ``/proc/PID/maps``: a line for each VMA."""
        return self._file("maps")

    def smaps(self) -> str:
        """Give the text of ``/proc/PID/smaps``: what of each VMA is in memory."""
        return self._file("smaps")

    def numa_maps(self) -> str:
        """Give the text of ``/proc/PID/numa_maps``: each VMA's policy and nodes."""
        return self._file("numa_maps")

    def status(self) -> str:
        """Give the text of ``/proc/PID/status``."""
        return self._file("status")

    def _file(self, name: str) -> str:
        from realmem.procfs.pid import pid_file

        self.mm.core.check_alive()
        read: Callable[[], str] | None = pid_file(self, name).read
        assert read is not None
        return read()

    def pagemap(self, addr: int, n: int) -> list[int]:
        """
        Give Linux's words on pages, as in ``/proc/PID/pagemap``.

        Bits: 0-54 frame, 55 soft-dirty, 56 mapped here only, 58 guard, 61 shared or a file's,
        62 swapped, 63 present.  Without CAP_SYS_ADMIN the process sees no frames.

        :param addr: in the first page.
        :param n: how many pages; there are none past the end of user addresses.
        :return: an int for each page; 0 where nothing is mapped.
        """
        from realmem.procfs.pid.pagemap import process_pagemap

        return process_pagemap(self, addr, n)

    def draw(
        self, width: int | None = None, rows: int = 48, *,
        color: bool | None = None, ascii: bool | None = None,
    ) -> str:  # fmt: skip
        """
        Draw the address space: the kernel half on top, the VMAs and the gaps between them below.

        Each VMA has a strip that shows which parts of it are in memory, the lowest address
        first.  Gaps are not to scale; their sizes are written in them.

        :param width: columns, at least 20; None is the terminal's, 80 where there is none.  Below
            60 addresses stand above what begins there.
        :param rows: of more VMAs than these, the ones that lie closest are drawn as one.
        :param color: None is whether standard output is a terminal.
        :param ascii: keep to ASCII; None is whether standard output can take no more.
        :return: the picture, its last line without an end.
        """
        from realmem.mm.draw import draw

        self.mm.core.check_alive()
        return draw(_scene(self), width, rows, color, ascii)


def _scene(process: Any) -> Any:
    from realmem.mm.draw import Scene
    from realmem.mm.draw_groups import Block
    from realmem.mm.draw_lines import human
    from realmem.procfs.pid.maps import areas

    core = process.mm.core
    blocks = [
        Block(area.start, area.end, area.perms, area.name, area.end - area.start)
        for area in areas(process)
    ]
    resident = sum(core.rss[i] for i in (0, 1, 3)) << PAGE_SHIFT
    swapped = core.rss[2] << PAGE_SHIFT
    summary = (
        f"{len(blocks):,} VMA{'s' * (len(blocks) != 1)}, "
        f"{human(sum(block.mapped for block in blocks))} mapped, {human(resident)} in memory"
        + (f", {human(swapped)} swapped" if swapped else "")
        + f", {human(core.nr_ptes << PAGE_SHIFT)} of page tables"
    )
    return Scene(
        f"{process.name}, pid {process.pid}",
        summary,
        blocks,
        lambda start, end: int(core.smaps(start, end).rss),
        _kernel_areas(process.machine),
    )


def _kernel_areas(machine: Any) -> list[Any]:
    from realmem.mm.draw import KernelArea
    from realmem.mm.draw_lines import human

    populated = [node for node in machine.nodes if node.memory]
    free = sum(node.free_pages for node in populated)
    span = max((node.end_pfn for node in populated), default=0) << PAGE_SHIFT
    total = sum(node.memory for node in populated)
    nodes = f"{len(populated)} node{'s' * (len(populated) != 1)}"
    vmalloc = machine._vmalloc.nr_pages << PAGE_SHIFT
    return [
        KernelArea(PAGE_OFFSET, span, "direct map",
                   f"{human(total)} on {nodes}, {human(free << PAGE_SHIFT)} free"),
        KernelArea(VMALLOC_START, machine.vmalloc_space, "vmalloc area",
                   f"{human(vmalloc)} in use"),
    ]  # fmt: skip
