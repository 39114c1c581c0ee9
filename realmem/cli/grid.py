"""Tables that are laid out to a width before they are drawn, so that no word is broken."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rich.table import Table

if TYPE_CHECKING:
    from rich.console import Console

# Between two columns: a blank, a line, a blank; and a line at each end.
_BETWEEN = 3
_ENDS = 2


@dataclass(frozen=True)
class Column:
    """
    A column.

    :ivar name: its heading.
    :ivar right: whether it stands to the right.
    :ivar wraps: whether it gives way at blanks where the table is too wide.
    """

    name: str
    right: bool = False
    wraps: bool = False


@dataclass(frozen=True)
class Grid:
    """
    A table's columns and texts.

    :ivar columns: at most one of them should wrap, since only then it alone gives way.
    :ivar rows: a text for each column.
    """

    columns: Sequence[Column]
    rows: Sequence[Sequence[str]]

    @property
    def width(self) -> int:
        """The characters a line takes when nothing is wrapped."""
        return self._width(str.splitlines)

    @property
    def least_width(self) -> int:
        """The fewest characters a line can have without a word being broken."""
        return self._width(str.split)

    def _width(self, parts: Callable[[str], list[str]]) -> int:
        total = _BETWEEN * (len(self.columns) - 1) + _ENDS
        for i, column in enumerate(self.columns):
            cut = parts if column.wraps else str.splitlines
            texts = (column.name, *(row[i] for row in self.rows))
            total += max((len(part) for text in texts for part in cut(text)), default=0)
        return total

    def table(self) -> Table:
        """Draw it."""
        table = Table(pad_edge=False)
        for column in self.columns:
            table.add_column(
                column.name,
                justify="right" if column.right else "left",
                overflow="fold",
                no_wrap=not column.wraps,
            )
        for row in self.rows:
            table.add_row(*row)
        return table


def figures(*names: str) -> list[Column]:
    """Give columns of numbers."""
    return [Column(name, right=True) for name in names]


def first_that_fits(console: Console, layouts: Iterable[Callable[[], Grid]]) -> tuple[int, Grid]:
    """
    Choose a layout for a console.

    :param layouts: makers, the best layout first.
    :return: which one it is, and the grid: the first that breaks no word, else the last.
    """
    chosen: tuple[int, Grid] | None = None
    for number, make in enumerate(layouts):
        chosen = number, make()
        if chosen[1].least_width <= console.width:
            break
    assert chosen is not None
    return chosen
