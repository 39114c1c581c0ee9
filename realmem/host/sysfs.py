"""Reading small kernel files: what is missing or unreadable is None."""

from __future__ import annotations

import errno
from collections.abc import Iterable
from pathlib import Path

from realmem.errors import HostError


def read_text(path: Path) -> str | None:
    """
    Give the stripped text of a file, or None where it cannot be read.

    :raises HostError: there is no descriptor left to read it with; that says nothing of the file.
    """
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError as error:
        if error.errno in (errno.EMFILE, errno.ENFILE):
            raise HostError(
                error.errno, f"cannot read {path}: {error.strerror}; raise ulimit -n"
            ) from None
        return None


def read_int(path: Path) -> int | None:
    """Give the integer that a file holds, or None (also for words such as ``max``)."""
    text = read_text(path)
    try:
        return None if text is None else int(text)
    except ValueError:
        return None


def parse_list(text: str | None) -> tuple[int, ...]:
    """
    Read the kernel's list format: ``"0-2,5"`` is ``(0, 1, 2, 5)``; empty or None is ``()``.

    Compare lib/bitmap-str.c:bitmap_parselist(), of which files use only ``a-b`` and ``a``.
    """
    numbers: list[int] = []
    for part in (text or "").split(","):
        first, _, last = part.strip().partition("-")
        if first.isdigit():
            numbers.extend(range(int(first), int(last if last.isdigit() else first) + 1))
    return tuple(numbers)


def format_list(numbers: Iterable[int]) -> str:
    """Write numbers in the kernel's list format: ``[0, 1, 2, 5]`` is ``"0-2,5"``."""
    runs: list[list[int]] = []
    for number in sorted(set(numbers)):
        if runs and runs[-1][1] == number - 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    return ",".join(str(a) if a == b else f"{a}-{b}" for a, b in runs)


def read_bytes_table(path: Path) -> dict[str, int]:
    """
    Read a meminfo-like file as name to bytes.

    Takes ``/proc/meminfo`` (``MemFree:  12 kB``), a node's meminfo (``Node 0 MemFree: 12 kB``)
    and a cgroup's memory.stat (``inactive_file 12288``); lines in kB are scaled.
    """
    table: dict[str, int] = {}
    for line in (read_text(path) or "").splitlines():
        words = line.split()
        if words[:1] == ["Node"]:
            words = words[2:]
        if len(words) >= 2 and words[1].isdigit():
            scale = 1024 if words[2:] == ["kB"] else 1
            table[words[0].rstrip(":")] = int(words[1]) * scale
    return table


def read_status(root: str, name: str) -> str | None:
    """Give one field of ``/proc/self/status``."""
    for line in (read_text(Path(root) / "proc/self/status") or "").splitlines():
        key, _, value = line.partition(":")
        if key == name:
            return value.strip()
    return None
