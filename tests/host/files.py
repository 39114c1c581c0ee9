"""
The files that processes map: each world has copies of its own, which begin alike.

They are files of a real file system, since memory files know neither write-back nor a store that
is noticed.  None grows beyond what one fault reads and maps around it.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from host.ops import PAGE, pattern

SIZES = 5 * PAGE, 3 * PAGE + 1000, 12 * PAGE
MOST_BYTES = 16 * PAGE
HOW = os.O_RDONLY, os.O_WRONLY, os.O_RDWR

# What they hold in the beginning: no two pages are alike.
AT_FIRST = tuple(bytes((80 * number + 5 * (at // PAGE) + at) % 256 for at in range(size))
                 for number, size in enumerate(SIZES))


class Files:
    """
    One world's copies, by number.

    :param parent: the folder to make them in, for worlds that may die before they are closed.
    :ivar folder: where they lie.
    :ivar fds: of each, descriptors by how it is opened: O_RDONLY, O_WRONLY, O_RDWR.
    """

    def __init__(self, parent: str | None = None) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="realmem-files-", dir=parent)
        self.folder = os.path.realpath(self._folder.name)
        paths = [Path(self.folder, f"file{number}") for number in range(len(SIZES))]
        for path in paths:
            path.touch()
        self.fds = [[os.open(path, how) for how in HOW] for path in paths]
        self.reset()

    def reset(self) -> None:
        """Put back what they held in the beginning."""
        for number in range(len(SIZES)):
            self.truncate(number, 0)
            os.pwrite(self._fd(number), AT_FIRST[number], 0)

    def close(self) -> None:
        """Remove them."""
        for fd in (fd for fds in self.fds for fd in fds):
            os.close(fd)
        self._folder.cleanup()

    def sizes(self) -> tuple[int, ...]:
        """Give their sizes in bytes."""
        return tuple(os.fstat(fds[os.O_RDWR]).st_size for fds in self.fds)

    def read(self, number: int) -> bytes:
        """Give what whoever reads the file finds."""
        return os.pread(self._fd(number), MOST_BYTES, 0)

    def truncate(self, number: int, size: int) -> None:
        """Make it shorter or longer."""
        os.ftruncate(self._fd(number), size)

    def pwrite(self, number: int, offset: int, n: int, seed: int) -> None:
        """Write to it as a program would that does not map it."""
        os.pwrite(self._fd(number), pattern(seed, n), offset)

    def drop(self, number: int) -> None:
        """Have the kernel forget what of it is clean and not mapped."""
        os.posix_fadvise(self._fd(number), 0, 0, os.POSIX_FADV_DONTNEED)

    def shorten(self, text: str) -> str:
        """Leave the folder out of the paths in a text."""
        return text.replace(f"{self.folder}/", "")

    def _fd(self, number: int) -> int:
        return self.fds[number][os.O_RDWR]
