"""Sets of CPUs and nodes as sysfs writes them (lib/vsprintf.c's %*pbl and %*pb)."""

from __future__ import annotations

from collections.abc import Iterable


def format_list(members: Iterable[int]) -> str:
    """Write a set as a list of ranges: {0, 1, 2, 5} is ``0-2,5``; an empty set is empty."""
    runs: list[list[int]] = []
    for member in sorted(set(members)):
        if runs and member == runs[-1][1] + 1:
            runs[-1][1] = member
        else:
            runs.append([member, member])
    return ",".join(f"{a}-{b}" if a != b else f"{a}" for a, b in runs)


def parse_list(text: str) -> list[int]:
    """Read a list of ranges."""
    members: list[int] = []
    for part in text.strip().split(","):
        if part:
            first, _, last = part.partition("-")
            members.extend(range(int(first), int(last or first) + 1))
    return members


def format_mask(members: Iterable[int], nr_bits: int) -> str:
    """
    Write a set as hexadecimal words of 32 bits, the highest first.

    :param nr_bits: how many members there can be; it sets the number of digits.
    """
    bits = sum(1 << member for member in set(members))
    words = []
    while nr_bits > 0:
        here = nr_bits % 32 or 32
        nr_bits -= here
        word = bits >> nr_bits & ((1 << here) - 1)
        words.append(f"{word:0{(here + 3) // 4}x}")
    return ",".join(words)
