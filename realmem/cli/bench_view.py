"""How ``realmem bench`` looks on a terminal: tables, bars, sparklines."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich.table import Table
from rich.text import Text

from realmem.layout import format_size

if TYPE_CHECKING:
    from rich.console import Console

    from realmem.bench.compare import Comparison
    from realmem.bench.results import PeerResult, Result, Run

_BLOCKS = "▁▂▃▄▅▆▇█"
_ASCII_BLOCKS = "_.-=+*#@"
_BAR_WIDTH = 12
_WIDE = 70          # narrower consoles get no bars


def show_host(console: Console, run: Run) -> None:
    """Print the facts that the figures below rest on, in two lines."""
    host = run.host
    nodes = host.get("nodes") or []
    load = host.get("load_average") or [0.0]
    console.print(
        f"{host.get('cpu_model') or host.get('machine')}"
        f"{' (virtual)' if host.get('virtual') else ''}, "
        f"{len(nodes) or 1} node{'s' if len(nodes) > 1 else ''}, "
        f"{len(host.get('cpus_allowed') or ())} CPUs, Linux {host.get('kernel')}, "
        f"clock {host.get('clock_source')}, load {load[0]:.2f}",
        highlight=False,
    )


def show_bench(console: Console, title: str, results: Sequence[Result]) -> None:
    """
    Print one bench: a row for each figure, and a sparkline for each sweep over sizes.

    What all rows share stands below the table once, what differs has a column.
    """
    units = _distinct(result.unit for result in results)
    stamps = _distinct(result.stamps for result in results)
    varying, shared = _split_params([result.params for result in results])
    metrics = _distinct(result.metric for result in results)
    pairs = _distinct((result.cpu_node, result.memory_node) for result in results)
    has_pairs = pairs != [(None, None)]
    wide = console.width >= _WIDE

    table = Table(title=f"{title}{f', {units[0]}' if len(units) == 1 else ''}",
                  title_justify="left", title_style="bold", pad_edge=False)
    if len(metrics) > 1:
        table.add_column("what", overflow="fold")
    if has_pairs:
        table.add_column("cpu>mem", no_wrap=True)
    for name in varying:
        table.add_column(_param_name(name), justify="right")
    for name in ("min", "median", "p95"):
        table.add_column(name, justify="right", no_wrap=True)
    if len(units) > 1:
        table.add_column("unit")
    if len(stamps) > 1:
        table.add_column("stamp", overflow="fold")
    bars = _bars(console, results) if wide and len(units) == 1 and len(results) > 1 else None
    if bars:
        table.add_column("", no_wrap=True)

    for row, result in enumerate(results):
        cells: list[str | Text] = []
        if len(metrics) > 1:
            cells.append(result.metric)
        if has_pairs:
            cells.append(_pair(result))
        cells += [_param(name, result.params.get(name)) for name in varying]
        cells += [_number(value) for value in (result.min, result.median, result.p95)]
        if len(units) > 1:
            cells.append(result.unit)
        if len(stamps) > 1:
            cells.append(", ".join(result.stamps))
        if bars:
            cells.append(bars[row])
        table.add_row(*cells)
    console.print()
    console.print(table)
    _sweeps(console, results)
    facts = [f"{_param_name(name)} {_param(name, value)}" for name, value in shared.items()]
    if len(stamps) == 1 and stamps[0]:
        facts.insert(0, f"stamped {', '.join(stamps[0])}")
    if facts:
        console.print("; ".join(facts), style="dim", highlight=False)
    for note in _distinct(result.note for result in results if result.note):
        console.print(note, style="dim", highlight=False)


def show_peers(console: Console, peers: Sequence[PeerResult]) -> None:
    """Print ours beside the peer programs', with the ratio and the peer's own spread."""
    table = Table(title="Beside other programs, in turns", title_justify="left",
                  title_style="bold", pad_edge=False)
    for name in ("peer", "what"):
        table.add_column(name, overflow="fold")
    for name in ("ours", "theirs", "ratio", "spread"):
        table.add_column(name, justify="right", no_wrap=True)
    for peer in peers:
        what = f"{peer.metric} {_describe(peer.params)}".strip()
        if not peer.present:
            table.add_row(peer.peer, what, "", "not present", "", "")
            continue
        table.add_row(
            peer.peer,
            what,
            f"{_number(_median(peer.ours))} {peer.unit}",
            _number(_median(peer.theirs)),
            f"{peer.ratio:.3f}",
            f"{peer.spread:.1%}",
        )
    console.print()
    console.print(table)
    console.print("ratio: ours over theirs, median of the rounds; spread: max over min of the "
                  "peer's own rounds", style="dim", highlight=False)
    for note in _distinct(f"{peer.peer}: {peer.note}" for peer in peers if peer.note):
        console.print(note, style="dim", highlight=False)


def show_comparison(console: Console, comparison: Comparison) -> None:
    """Print what moved between two runs; figures within the noise are only counted."""
    moved = [change for change in comparison.changes if change.verdict != "same"]
    console.print()
    for warning in comparison.warnings:
        console.print(f"warning: {warning}", style="yellow", highlight=False)
    if comparison.changes:
        table = Table(title="Compared with the earlier run", title_justify="left",
                      title_style="bold", pad_edge=False)
        table.add_column("figure", overflow="fold")
        for name in ("old", "new", "ratio", "noise", ""):
            table.add_column(name, justify="right", no_wrap=True)
        for change in moved or comparison.changes:
            new = change.new
            table.add_row(
                f"{new.metric} {_pair(new)} {_describe(new.params)}".strip(),
                _number(change.old.median),
                f"{_number(new.median)} {new.unit}",
                f"{change.ratio:.2f}",
                f"{change.band[0]:.2f}-{change.band[1]:.2f}",
                change.verdict,
            )
        console.print(table)
    console.print(
        f"{len(comparison.changes) - len(moved)} of {len(comparison.changes)} figures within "
        f"their noise; {len(comparison.only_old)} only then, {len(comparison.only_new)} only now",
        highlight=False,
    )


def _sweeps(console: Console, results: Sequence[Result]) -> None:
    """Print one sparkline for each series of at least four sizes."""
    series: dict[tuple[Any, ...], list[Result]] = {}
    for result in results:
        others = tuple((k, v) for k, v in result.params.items() if k != "size_bytes")
        if "size_bytes" in result.params:
            key = (result.metric, result.cpu_node, result.memory_node, others)
            series.setdefault(key, []).append(result)
    for line in series.values():
        if len(line) < 4:
            continue
        line.sort(key=lambda result: int(result.params["size_bytes"]))
        first, last = line[0], line[-1]
        pages = first.params.get("pages", "")
        console.print(
            f"{_pair(first)} {pages:>3} {sparkline([r.median for r in line], _ascii(console))} "
            f"{format_size(int(first.params['size_bytes']))} to "
            f"{format_size(int(last.params['size_bytes']))}: "
            f"{_number(first.median)} to {_number(last.median)} {first.unit}",
            highlight=False,
        )


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


def _bars(console: Console, results: Sequence[Result]) -> list[str]:
    """Give a bar for each median, on a linear scale from nought."""
    block = "#" if _ascii(console) else "█"
    largest = max(result.median for result in results)
    if largest <= 0:
        return [""] * len(results)
    return [block * round(max(r.median, 0) / largest * _BAR_WIDTH) for r in results]


def _ascii(console: Console) -> bool:
    return not console.encoding.lower().startswith("utf")


def _split_params(rows: Sequence[Any]) -> tuple[list[str], dict[str, Any]]:
    """Divide parameters into those that differ between rows and those that all share."""
    order = _distinct(name for row in rows for name in row)
    shared = {}
    varying = []
    for name in order:
        values = _distinct(row.get(name) for row in rows)
        if len(values) == 1:
            shared[name] = values[0]
        else:
            varying.append(name)
    return varying, shared


def _distinct(items: Iterable[Any]) -> list[Any]:
    return list(dict.fromkeys(items))


def _pair(result: Result) -> str:
    if result.cpu_node is None and result.memory_node is None:
        return ""
    ends = ("-" if node is None else str(node) for node in (result.cpu_node, result.memory_node))
    return ">".join(ends)


def _param_name(name: str) -> str:
    return name.removesuffix("_bytes").replace("_", " ")


def _param(name: str, value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return ("" if value else "no ") + _param_name(name)
    if name.endswith("_bytes"):
        return format_size(int(value))
    return str(value)


def _describe(params: Mapping[str, Any]) -> str:
    """Write parameters in a few words: ``4K 256M threads 2``."""
    return " ".join(
        _param(name, value)
        if isinstance(value, (bool, str)) or name.endswith("_bytes")
        else f"{_param_name(name)} {value}"
        for name, value in params.items()
    )


def _number(value: float) -> str:
    """Write about three digits: figures here are never better than that."""
    size = abs(value)
    if size >= 1e6:
        return f"{value:.3g}"
    return f"{value:.2f}" if size < 10 else f"{value:.1f}" if size < 100 else f"{value:.0f}"


def _median(samples: Sequence[float]) -> float:
    from realmem.bench import stats

    return stats.median(samples)
