"""
A picture of an address space as text: highest addresses on top, as they are drawn.

``Scene`` is what there is to draw; how it is laid out in lines is in realmem/mm/draw_lines.py.
Testable without memory.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from realmem.layout import PAGE_SHIFT
from realmem.mm.draw_groups import Block, condense
from realmem.mm.draw_lines import Pen, human
from realmem.mm.draw_narrow import NarrowPen

DEFAULT_WIDTH = 80
LEAST_WIDTH = 20        # an address, and a word
FRAMED_WIDTH = 60       # addresses beside the frame take so much
MOST_ROWS = 48
# A gap gets a line more at each of these; a VMA at each of the others.
GAP_STEPS = 1 << 30, 1 << 40
BLOCK_STEPS = 4 << 20, 1 << 30
USER_END = (1 << 47) - 4096
KERNEL_START = 0xFFFF800000000000
KERNEL_END = 1 << 64


@dataclass(frozen=True)
class KernelArea:
    """One area of the kernel half."""

    start: int
    length: int
    name: str
    what: str


@dataclass
class Scene:
    """
    What is to be drawn.

    :ivar title: whose address space it is.
    :ivar summary: counts, shown below the title.
    :ivar blocks: the VMAs in address order.
    :ivar present: gives how many pages of ``[start, end)`` are in memory.
    :ivar kernel: areas of the kernel half in address order.
    """

    title: str
    summary: str
    blocks: Sequence[Block]
    present: Callable[[int, int], int]
    kernel: Sequence[KernelArea] = field(default_factory=tuple)


def draw(
    scene: Scene,
    width: int | None = None,
    rows: int = MOST_ROWS,
    color: bool | None = None,
    plain: bool | None = None,
) -> str:
    """
    Draw a scene.

    :param width: columns, at least 20; None is the terminal's, 80 where there is none.
    :param rows: how many VMAs, or groups of VMAs, are shown at most.
    :param color: whether to use colours; None is whether standard output is a terminal.
    :param plain: whether to keep to ASCII; None is whether standard output can take no more.
    :return: lines of at most ``width`` columns, the last without an end.
    """
    if width is None:
        width = shutil.get_terminal_size((DEFAULT_WIDTH, 24)).columns
    pen = (Pen if width >= FRAMED_WIDTH else NarrowPen)(
        max(width, LEAST_WIDTH),
        _wants_color() if color is None else color,
        not _takes_unicode() if plain is None else plain,
    )
    groups = condense(scene.blocks, max(rows, 1))
    lines = [f" {pen.bold(pen.cut(scene.title, pen.width - 1))}"]
    lines += [*(f" {line}" for line in pen.fit(scene.summary)), ""]
    lines += _kernel_half(pen, scene.kernel)
    lines.append(pen.hole(f"no addresses here: {human(KERNEL_START - (1 << 47))}"))
    lines += _user_half(pen, scene, groups)
    lines += ["", *pen.legend()]
    return "\n".join(line.rstrip() for text in lines for line in text.split("\n"))


def _kernel_half(pen: Pen, areas: Sequence[KernelArea]) -> Iterator[str]:
    yield pen.edge(KERNEL_END - 1, "kernel half, the same in every process", top=True, strong=True)
    top = KERNEL_END
    for area in reversed(areas):
        yield pen.gap(human(top - area.start - area.length))
        yield pen.kernel_row(area.start, area.length, area.name, area.what)
        top = area.start
    yield pen.gap(human(top - KERNEL_START))
    yield pen.edge(KERNEL_START, "", top=False, strong=True)


def _user_half(pen: Pen, scene: Scene, groups: Sequence[Block]) -> Iterator[str]:
    yield pen.edge(USER_END, "user half", top=True)
    label_width = min(max((len(group.label) for group in groups), default=0), pen.inner // 3)
    strip = pen.strip_room(label_width)
    top = USER_END
    for group in reversed(groups):
        yield from _gap(pen, top - group.end)
        yield from _block(pen, scene, group, strip)
        top = group.start
    yield from _gap(pen, top)
    yield pen.edge(0, "", top=False)


def _gap(pen: Pen, length: int) -> Iterator[str]:
    if length > 0:
        for _ in range(sum(length >= step for step in GAP_STEPS)):
            yield pen.gap("")
        yield pen.gap(human(length))


def _block(pen: Pen, scene: Scene, group: Block, strip: int) -> Iterator[str]:
    lines = 1 + sum(group.end - group.start >= step for step in BLOCK_STEPS) * pen.tall
    cells, found = _presence(scene, group, strip * lines)
    for line in range(lines - 1, 0, -1):
        yield pen.more_of_block(cells[line * strip : (line + 1) * strip])
    yield pen.block_row(group, cells[:strip], found)


def _presence(scene: Scene, group: Block, wanted: int) -> tuple[list[float], int]:
    """Give for each cell of a strip the share of its pages that is present, and how many are."""
    pages = (group.end - group.start) >> PAGE_SHIFT
    units = min(pages, wanted)          # a page that several cells show is looked up once
    shares = []
    total = 0
    for i in range(units):
        first, last = pages * i // units, pages * (i + 1) // units
        found = scene.present(
            group.start + (first << PAGE_SHIFT), group.start + (last << PAGE_SHIFT)
        )
        total += found
        shares.append(found / (last - first))
    return [shares[units * i // wanted] for i in range(wanted)], total


def _wants_color() -> bool:
    return sys.stdout is not None and sys.stdout.isatty() and not os.environ.get("NO_COLOR")


def _takes_unicode() -> bool:
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    try:
        "█▒·┊╔".encode(encoding)
    except (UnicodeEncodeError, LookupError):
        return False
    return True
