"""A tree of text files as a mapping: path to text."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, ItemsView, Iterable, Iterator, Mapping, ValuesView
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class TextFile:
    """
    One file: what reading gives, and what writing does where Linux's file can be written.

    What can only be written has no ``read``.
    """

    read: Callable[[], str] | None
    write: Callable[[str], None] | None = None


class TextTree(Mapping[str, str]):
    """
    Mapping of absolute paths to texts, each made when it is read.

    An unknown path is a KeyError; writing a file that Linux has read-only is ``OSError(EACCES)``,
    and so is reading one that can only be written: ``paths()`` lists it, iteration leaves it out.

    :param machine: whose files they are; nothing is read or written where it forbids calls.
    :param families: each gives some of the files that exist now.
    """

    def __init__(
        self,
        machine: Any,
        *families: Callable[[], Iterable[tuple[str, TextFile]]],
    ) -> None:
        self._machine = machine
        self._families = families

    def _files(self) -> dict[str, TextFile]:
        self._machine._allocator.check_alive()
        return {path: file for family in self._families for path, file in family()}

    def _file(self, path: object) -> TextFile | None:
        self._machine._allocator.check_alive()
        found = (file for family in self._families for at, file in family() if at == path)
        return next(found, None)

    def _readers(self) -> list[tuple[str, Callable[[], str]]]:
        files = self._files().items()
        return [(path, file.read) for path, file in files if file.read is not None]

    def __getitem__(self, path: str) -> str:
        file = self._file(path)
        if file is None:
            raise KeyError(path)
        read = file.read
        if read is None:
            raise _forbidden(path)
        return read()

    def __setitem__(self, path: str, text: str) -> None:
        file = self._file(path)
        if file is None:
            raise KeyError(path)
        write = file.write
        if write is None:
            raise _forbidden(path)
        if not isinstance(text, str):
            raise TypeError(f"{path} takes a str, not {text!r}")
        write(text)

    def __contains__(self, path: object) -> bool:
        return self._file(path) is not None

    def items(self) -> ItemsView[str, str]:
        """Read every file, listing the tree once."""
        return {path: read() for path, read in sorted(self._readers())}.items()

    def values(self) -> ValuesView[str]:
        """Read every file, listing the tree once."""
        return dict(self.items()).values()

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(path for path, _ in self._readers()))

    def __len__(self) -> int:
        return len(self._readers())

    def __repr__(self) -> str:
        return f"<realmem {type(self).__name__}>"

    def paths(self) -> list[str]:
        """List the files that exist now."""
        return sorted(self._files())

    def write_under(self, directory: str | os.PathLike[str]) -> None:
        """
        Write every file below a directory: ``/proc/meminfo`` goes to ``directory/proc/meminfo``.

        :param directory: made where it is missing.
        """
        for path, read in self._readers():
            target = Path(directory, path.lstrip("/"))
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(read())


def _forbidden(path: str) -> PermissionError:
    return PermissionError(errno.EACCES, os.strerror(errno.EACCES), path)
