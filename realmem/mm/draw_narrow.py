"""The lines of a picture of an address space where addresses have no room beside the frame."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

from realmem.mm.draw_groups import Block
from realmem.mm.draw_lines import Pen, human

_SIDES = 3              # a margin, and the frame's two


class NarrowPen(Pen):
    """Makes lines of one width: addresses stand above what begins there."""

    tall = False

    def __init__(self, width: int, color: bool, plain: bool) -> None:
        super().__init__(width, color, plain)
        self.inner = width - _SIDES

    def fit(self, text: str) -> list[str]:
        """Make lines of a text that may be too long: as many as it takes."""
        return textwrap.wrap(text, self.width - 1)

    def _place(self, address: str, framed: str) -> str:
        return f" {self._dim(address)}\n {framed}" if address else f" {framed}"

    def edge(self, address: int, title: str, *, top: bool, strong: bool = False) -> str:
        """Make the upper or lower edge of one of the two halves."""
        if len(title) > self.inner - 2:
            title = title.partition(",")[0]
        lines = super().edge(address, title, top=top, strong=strong).split("\n")
        return "\n".join(lines if top else reversed(lines))

    def hole(self, text: str) -> str:
        """Make the line between the halves."""
        return "\n".join(f" {self._dim(line)}" for line in self.fit(text))

    def gap(self, size: str) -> str:
        """Make a line of nothing mapped."""
        return f" {self._dim(f'{self._signs.gap} {size}'.rstrip())}"

    def kernel_row(self, start: int, length: int, name: str, what: str) -> str:
        """Make the lines of an area of the kernel half."""
        side = self._signs.strong_side
        texts = textwrap.wrap(f"{name} {human(length)}, {what}", self.inner - 1)
        return "\n".join(
            self._row("" if i else f"{start:x}", side, f" {text}", 1 + len(text))
            for i, text in enumerate(texts)
        )

    def strip_room(self, label_width: int) -> int:
        """Give how many cells a strip has: it has a line of its own."""
        return self.inner - 4

    def block_row(self, block: Block, cells: Sequence[float], pages: int) -> str:
        """Make the lines that name a VMA, or several, and its strip."""
        side = self._signs.side
        address = f"{block.start:x}"
        label = self.cut(block.label, self.width - 2 - len(address))
        rest = f" {human(block.mapped)} {self._percent(block, pages)}"
        rest = self.cut(rest.rstrip(), self.inner - 1 - len(block.perms))
        inside = f" {self._paint(block.perms, self._hue(block.perms))}{rest}"
        return "\n".join((
            f" {self._dim(address)} {label}",
            self._row("", side, inside, 1 + len(block.perms) + len(rest)),
            self._row("", side, f" {self._strip(cells)}", 3 + len(cells)),
        ))
