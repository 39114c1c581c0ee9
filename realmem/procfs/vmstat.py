"""Counter files: ``name value`` lines, as in ``/proc/vmstat`` and a node's ``vmstat``."""

from __future__ import annotations

from collections.abc import Mapping


def format_counters(counters: Mapping[str, int]) -> str:
    """Write one line for each counter."""
    return "".join(f"{name} {value}\n" for name, value in counters.items())


def parse_counters(text: str) -> dict[str, int]:
    """Read such lines, in their order."""
    pairs = (line.split() for line in text.splitlines())
    return {name: int(value) for name, value in pairs}
