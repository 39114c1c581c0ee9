"""A tree of text files as a mapping: path to text."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class TextFile:
    """One file: what reading gives, and what writing does where Linux's file can be written."""

    read: Callable[[], str]
    write: Callable[[str], None] | None = None


class TextTree(Mapping[str, str]):
    """
    Mapping of absolute paths to texts, each made when it is read.

    An unknown path is a KeyError; writing a file that Linux has read-only is ``OSError(EACCES)``.

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

    def __getitem__(self, path: str) -> str:
        return self._files()[path].read()

    def __setitem__(self, path: str, text: str) -> None:
        write = self._files()[path].write
        if write is None:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), path)
        if not isinstance(text, str):
            raise TypeError(f"{path} takes a str, not {text!r}")
        write(text)

    def __contains__(self, path: object) -> bool:
        return path in self._files()

    def __iter__(self) -> Iterator[str]:
        return iter(self.paths())

    def __len__(self) -> int:
        return len(self._files())

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
        for path, file in self._files().items():
            target = Path(directory, path.lstrip("/"))
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(file.read())
