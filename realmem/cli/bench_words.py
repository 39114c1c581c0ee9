"""Words and small pictures for figures: parameters, numbers, node pairs, bars, sparklines."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from realmem.layout import format_size

if TYPE_CHECKING:
    from rich.console import Console

    from realmem.bench.results import Result

_BLOCKS = "▁▂▃▄▅▆▇█"
_ASCII_BLOCKS = "_.-=+*#@"
_BAR_WIDTH = 12
_BAR_RANGE = 300        # of the figures in a table, largest over smallest


def sparkline(values: Sequence[float], ascii_only: bool = False) -> str:
    """
    Draw a series as one character a value, on a logarithmic scale.

    :param values: positive numbers.
    :param ascii_only: for terminals that have no block characters.
    """
    blocks = _ASCII_BLOCKS if ascii_only else _BLOCKS
    logs = [math.log(max(value, 1e-9)) for value in values]
    low, height = min(logs), max(logs) - min(logs)
    top = len(blocks) - 1
    return "".join(blocks[round((x - low) / height * top) if height else 0] for x in logs)


def bars(console: Console, results: Sequence[Result]) -> list[str]:
    """
    Give a bar for each median, on a linear scale from nought.

    :return: no bars at all where one would be all that can be seen.
    """
    block = "#" if is_ascii(console) else "█"
    medians = [result.median for result in results]
    if len(medians) < 2 or min(medians) <= 0 or max(medians) > _BAR_RANGE * min(medians):
        return []
    return [block * round(value / max(medians) * _BAR_WIDTH) for value in medians]


def is_ascii(console: Console) -> bool:
    """Tell whether a console cannot show block characters."""
    return not console.encoding.lower().startswith("utf")


def split_params(rows: Sequence[Any]) -> tuple[list[str], dict[str, Any]]:
    """Divide parameters into those that differ between rows and those that all share."""
    order = distinct(name for row in rows for name in row)
    shared = {}
    varying = []
    for name in order:
        values = distinct(row.get(name) for row in rows)
        if len(values) == 1:
            shared[name] = values[0]
        else:
            varying.append(name)
    return varying, shared


def distinct(items: Iterable[Any]) -> list[Any]:
    """Give each item once, in order of first appearance."""
    return list(dict.fromkeys(items))


def pair_name(result: Result) -> str:
    """Write where a figure comes from: ``0>1`` is CPU node 0 and memory node 1."""
    if result.cpu_node is None and result.memory_node is None:
        return ""
    ends = ("-" if node is None else str(node) for node in (result.cpu_node, result.memory_node))
    return ">".join(ends)


def param_name(name: str) -> str:
    """Write a parameter's name without its unit, which the value shows."""
    return name.removesuffix("_bytes").replace("_", " ")


def param_text(name: str, value: Any) -> str:
    """Write a parameter's value."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if name.endswith("_bytes"):
        return format_size(int(value))
    return str(value)


def describe(params: Mapping[str, Any]) -> str:
    """Write parameters in a few words: ``4K 256M threads 2``."""
    words = []
    for name, value in params.items():
        if isinstance(value, bool):
            words.append(("" if value else "no ") + param_name(name))
        elif isinstance(value, str) or name.endswith("_bytes"):
            words.append(param_text(name, value))
        else:
            words.append(f"{param_name(name)} {value}")
    return " ".join(words)


def number(value: float) -> str:
    """Write about three digits: figures here are never better than that."""
    size = abs(value)
    if size >= 1e6:
        return f"{value:.3g}"
    return f"{value:.2f}" if size < 10 else f"{value:.1f}" if size < 100 else f"{value:.0f}"
