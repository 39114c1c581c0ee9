"""The lines that a picture of an address space is made of."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from realmem.layout import PAGE_SIZE
from realmem.mm.draw_groups import Block

_UNITS = "KMGTPE"
_ADDRESS = 16           # hexadecimal digits
_SIZE = 9               # "1023.9 KiB" is written "1024 KiB"
_PERMS = 4
_SHARE = 4              # "100%"
_STRIP_LEAST = 12
_GLUE = "\xa0"          # a space that no line ends at
_RESET, _BOLD, _DIM = "\x1b[0m", "\x1b[1m", "\x1b[2m"
_RED, _GREEN, _YELLOW, _BLUE, _CYAN = (f"\x1b[{31 + i}m" for i in (0, 1, 2, 3, 5))


def human(size: int) -> str:
    """Write bytes in the largest unit that leaves a number of at least 1."""
    if size < 1024:
        return f"{size} B"
    power = min((size.bit_length() - 1) // 10, len(_UNITS))
    value = size / (1 << 10 * power)
    digits = f"{value:.1f}" if value < 99.95 else f"{value:.0f}"
    return f"{digits.removesuffix('.0')} {_UNITS[power - 1]}iB"


@dataclass(frozen=True)
class _Signs:
    """The characters of the frame, of holes and of strips; shades from nothing to all."""

    single: str
    double: str
    side: str
    strong_side: str
    gap: str
    shades: str
    ends: str
    more: str


_BOX = _Signs("┌─┐└┘", "╔═╗╚╝", "│", "║", "┊", "·░▒▓█", "▕▏", "…")
_ASCII = _Signs("+-+++", "+=+++", "|", "|", ":", ".:+*#", "[]", "~")


class Pen:
    """
    Makes lines of one width: addresses, and beside them a frame.

    :param width: columns.
    :param color: whether to colour them.
    :param plain: whether to keep to ASCII.
    :cvar tall: whether what is large takes several lines.
    """

    tall = True

    def __init__(self, width: int, color: bool, plain: bool) -> None:
        self.width = width
        self.inner = width - _ADDRESS - 4       # between the two sides
        self._color = color
        self._signs = _ASCII if plain else _BOX

    def _paint(self, text: str, *codes: str) -> str:
        return f"{''.join(codes)}{text}{_RESET}" if self._color and text else text

    def _dim(self, text: str) -> str:
        return self._paint(text, _DIM)

    def bold(self, text: str) -> str:
        """Make a text stand out."""
        return self._paint(text, _BOLD)

    def cut(self, text: str, room: int) -> str:
        """Shorten a text to ``room`` columns."""
        return text if len(text) <= room else text[: max(room - 1, 0)] + self._signs.more

    def fit(self, text: str) -> list[str]:
        """Make lines of a text that may be too long: one, shortened."""
        return [self.cut(text, self.width - 1)]

    def _place(self, address: str, framed: str) -> str:
        """Put an address where it belongs to a line of the frame."""
        return f" {self._dim(f'{address:>{_ADDRESS}}')} {framed}"

    def _row(self, address: str, side: str, inside: str, length: int) -> str:
        """Frame a line; ``length`` is how many columns ``inside`` takes."""
        return self._place(address, f"{side}{inside}{' ' * (self.inner - length)}{side}")

    def edge(self, address: int, title: str, *, top: bool, strong: bool = False) -> str:
        """Make the upper or lower edge of one of the two halves."""
        signs = self._signs.double if strong else self._signs.single
        line = signs[1]
        left, right = (signs[0], signs[2]) if top else (signs[3], signs[4])
        text = f" {self.cut(title, self.inner - 2)} " if title else ""
        before = (self.inner - len(text)) // 2
        after = self.inner - len(text) - before
        middle = line * before + self.bold(text) + line * after
        return self._place(f"{address:x}", f"{left}{middle}{right}")

    def hole(self, text: str) -> str:
        """Make the line between the halves."""
        return f" {'':{_ADDRESS}}   {self._dim(text)}"

    def gap(self, size: str) -> str:
        """Make a line of nothing mapped."""
        sign = self._signs.gap
        text = f"{sign} {size}" if size else sign
        return f" {'':{_ADDRESS}} {self._dim(text)}".ljust(1)

    def kernel_row(self, start: int, length: int, name: str, what: str) -> str:
        """Make the line of an area of the kernel half."""
        head = f" {name:<14}{human(length):>{_SIZE}}   "
        tail = self.cut(what, self.inner - len(head) - 1)
        return self._row(
            f"{start:x}", self._signs.strong_side, self._paint(head, _CYAN) + tail,
            len(head) + len(tail),
        )  # fmt: skip

    def strip_room(self, label_width: int) -> int:
        """Give how many cells a strip has beside labels of a width."""
        fixed = 1 + _PERMS + 1 + _SIZE + 2 + 2 + 1 + _SHARE + 2
        return max(self.inner - fixed - label_width, _STRIP_LEAST)

    def block_row(self, block: Block, cells: Sequence[float], pages: int) -> str:
        """Make the line that names a VMA, or several, with the strip of its lowest addresses."""
        percent = self._percent(block, pages)
        size = f"{human(block.mapped):>{_SIZE}}"
        used = 1 + _PERMS + 1 + _SIZE + 2 + len(cells) + 2 + 1 + _SHARE + 2
        label = self.cut(block.label, self.inner - used)
        inside = (
            f" {self._paint(block.perms, self._hue(block.perms))} {size}  {self._strip(cells)}"
            f" {percent:>{_SHARE}}  {label}"
        )
        return self._row(f"{block.start:x}", self._signs.side, inside, used + len(label))

    def more_of_block(self, cells: Sequence[float]) -> str:
        """Make a line of a VMA above the one that names it."""
        lead = 1 + _PERMS + 1 + _SIZE + 2
        inside = f"{' ' * lead}{self._strip(cells)}"
        return self._row("", self._signs.side, inside, lead + len(cells) + 2)

    def _strip(self, cells: Sequence[float]) -> str:
        shades, ends = self._signs.shades, self._signs.ends
        last = len(shades) - 1
        # A page among many is not nothing, and one missing not all.
        drawn = [0 if not c else last if c >= 1 else 1 + min(int(c * 3), 2) for c in cells]
        return ends[0] + self._paint("".join(shades[i] for i in drawn), _GREEN) + ends[1]

    @staticmethod
    def _percent(block: Block, pages: int) -> str:
        share = pages * PAGE_SIZE / block.mapped if block.mapped else 0.0
        return "" if not pages else "<1%" if share < 0.01 else f"{int(share * 100)}%"

    @staticmethod
    def _hue(perms: str) -> str:
        if "w" in perms and "x" in perms:
            return _RED
        if "x" in perms:
            return _BLUE
        return _YELLOW if "w" in perms else _DIM

    def legend(self) -> Iterable[str]:
        """Explain the signs."""
        shades = self._signs.shades
        parts = (
            f"{shades[-1]} in memory", f"{shades[3:0:-1]} in part", f"{shades[0]} not",
            f"{self._signs.gap} nothing mapped",
        )  # fmt: skip
        text = "  ".join(part.replace(" ", _GLUE) for part in parts) + "   (strips: low to high)"
        for line in textwrap.wrap(text, self.width - 1):
            yield f" {self._dim(line.replace(_GLUE, ' '))}"
