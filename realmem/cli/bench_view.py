"""How ``realmem bench`` looks on a terminal: tables, bars, sparklines."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from rich.measure import Measurement
from rich.table import Table

from realmem.bench.facts import is_busy
from realmem.bench.stats import median
from realmem.cli.bench_words import (
    bars,
    describe,
    distinct,
    is_ascii,
    number,
    pair_name,
    param_name,
    param_text,
    sparkline,
    split_params,
)
from realmem.layout import format_size

if TYPE_CHECKING:
    from rich.console import Console

    from realmem.bench.compare import Comparison
    from realmem.bench.results import PeerResult, Result, Run


def show_host(console: Console, run: Run) -> None:
    """Print the facts that the figures below rest on."""
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
    if is_busy(host):
        console.print("warning: other programs use this host; trust the best figures, not the "
                      "medians", style="yellow", highlight=False)


def show_bench(console: Console, title: str, results: Sequence[Result]) -> None:
    """
    Print one bench: a table for each kind of figure, a sparkline for each sweep over sizes.

    Figures with the same parameters and unit share a table.  Measured from one node to itself,
    each figure is a row; between several nodes, each pair of nodes is a column.
    """
    kinds: dict[tuple[Any, ...], list[Result]] = {}
    for result in results:
        kinds.setdefault((result.unit, *sorted(result.params)), []).append(result)
    lonely = [rows[0] for rows in kinds.values() if len(rows) == 1]
    for rows in kinds.values():
        if len(rows) == 1 and len(lonely) > 1:
            continue
        metrics = distinct(result.metric for result in rows)
        named = len(kinds) > 1 and len(metrics) == 1
        _print_kind(console, f"{title}: {metrics[0]}" if named else title, rows)
    if len(lonely) > 1:
        _print_lonely(console, title, lonely)
    for note in distinct(result.note for result in results if result.note):
        console.print(note, style="dim", highlight=False)


def _print_kind(console: Console, title: str, results: Sequence[Result]) -> None:
    """Print figures that share a table; what all of them share stands below it once."""
    varying, shared = split_params([result.params for result in results])
    _print_title(console, f"{title}, {results[0].unit}")
    if len(distinct((result.cpu_node, result.memory_node) for result in results)) > 1:
        _print_matrix(console, results, varying)
    else:
        _print_rows(console, results, varying)
    _print_sweeps(console, results)
    stamps = distinct(result.stamps for result in results)
    facts = [f"{param_name(name)} {param_text(name, value)}" for name, value in shared.items()]
    if len(stamps) == 1 and stamps[0]:
        facts.insert(0, f"stamped {', '.join(stamps[0])}")
    if facts:
        console.print("; ".join(facts), style="dim", highlight=False)


def _print_lonely(console: Console, title: str, results: Sequence[Result]) -> None:
    """Print figures that have no others of their kind, their parameters in words."""
    _print_title(console, f"{title}: more")
    table = _table()
    table.add_column("what", overflow="fold")
    table.add_column("cpu>mem", no_wrap=True)
    for name in ("min", "median", "p95"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("unit")
    for result in results:
        words = [result.metric, describe(result.params)]
        if result.stamps:
            words.append(f"({', '.join(result.stamps)})")
        table.add_row(" ".join(filter(None, words)), pair_name(result), *_three(result),
                      result.unit)
    console.print(table)


def _print_title(console: Console, title: str) -> None:
    """Print a table's title: rich would wrap it to the width of the table."""
    console.print()
    console.print(title, style="bold", highlight=False)


def _table() -> Table:
    return Table(pad_edge=False)


def _three(result: Result) -> list[str]:
    return [number(value) for value in (result.min, result.median, result.p95)]


def _print_rows(console: Console, results: Sequence[Result], varying: Sequence[str]) -> None:
    """Print one row for each figure, with a bar where there is room."""
    table = _rows(results, varying, bars(console, results))
    anywhere = console.options.update(max_width=1000)
    if Measurement.get(console, anywhere, table).maximum > console.width:
        table = _rows(results, varying, [])
    console.print(table)


def _rows(results: Sequence[Result], varying: Sequence[str], drawn: Sequence[str]) -> Table:
    table = _table()
    stamps = distinct(result.stamps for result in results)
    has_pair = any(pair_name(result) for result in results)
    has_metrics = _add_labels(table, results, varying)
    if has_pair:
        table.add_column("cpu>mem", no_wrap=True)
    for name in ("min", "median", "p95"):
        table.add_column(name, justify="right", no_wrap=True)
    if len(stamps) > 1:
        table.add_column("stamp", overflow="fold")
    if drawn:
        table.add_column("", no_wrap=True)
    for result, bar in zip(results, drawn or [""] * len(results), strict=True):
        table.add_row(
            *_labels(result, varying, has_metrics),
            *([pair_name(result)] if has_pair else []),
            *_three(result),
            *([", ".join(result.stamps)] if len(stamps) > 1 else []),
            *([bar] if drawn else []),
        )
    return table


def _print_matrix(console: Console, results: Sequence[Result], varying: Sequence[str]) -> None:
    """Print pairs of nodes as columns, as many at a time as fit side by side."""
    stamps = distinct(result.stamps for result in results)
    pairs = {pair_name(result) or "any": None for result in results}
    rows: dict[tuple[Any, ...], dict[str, Result]] = {}
    for result in results:
        key = (result.metric, *(result.params.get(name) for name in varying))
        rows.setdefault(key, {})[pair_name(result) or "any"] = result
    labels = 9 * (len(varying) + 1)
    wide = len(pairs) * 12 + labels <= console.width
    at_once = max(1, (console.width - labels) // (12 if wide else 8))
    names = list(pairs)
    for first in range(0, len(names), at_once):
        part = names[first : first + at_once]
        chunk = _table()
        has_metrics = _add_labels(chunk, results, varying)
        for name in part:
            chunk.add_column(name, justify="right", no_wrap=True)
        for row in rows.values():
            some = next(iter(row.values()))
            chunk.add_row(
                *_labels(some, varying, has_metrics),
                *(_cell(row.get(name), wide, len(stamps) > 1) for name in part),
            )
        console.print(chunk)
    below = "median, and min to p95 below it" if wide else "medians; the rest is in --json FILE"
    if len(stamps) > 1:
        below += "; * " + ", ".join(sorted({word for stamp in stamps for word in stamp}))
    console.print(f"cpu>mem nodes: {below}", style="dim", highlight=False)


def _cell(result: Result | None, wide: bool, starred: bool) -> str:
    if result is None:
        return ""
    text = number(result.median) + ("*" if starred and result.stamps else "")
    return f"{text}\n{number(result.min)}-{number(result.p95)}" if wide else text


def _add_labels(table: Table, results: Sequence[Result], varying: Sequence[str]) -> bool:
    """Add the columns that say what a row is; tell whether the metric is one of them."""
    has_metrics = len(distinct(result.metric for result in results)) > 1
    if has_metrics:
        table.add_column("what", overflow="fold")
    for name in varying:
        table.add_column(param_name(name), justify="right", overflow="fold")
    return has_metrics


def _labels(result: Result, varying: Sequence[str], has_metrics: bool) -> list[str]:
    """Give the cells that say what a row is."""
    params = [param_text(name, result.params.get(name)) for name in varying]
    return [result.metric, *params] if has_metrics else params


def show_peers(console: Console, peers: Sequence[PeerResult]) -> None:
    """Print ours beside the peer programs', with the ratio and the peer's own spread."""
    _print_title(console, "Beside other programs, in turns")
    table = _table()
    for name in ("peer", "what"):
        table.add_column(name, overflow="fold")
    for name in ("ours", "theirs", "ratio", "spread"):
        table.add_column(name, justify="right", no_wrap=True)
    for peer in peers:
        what = f"{peer.metric} {describe(peer.params)}".strip()
        if not peer.present:
            table.add_row(peer.peer, what, "", "not present", "", "")
            continue
        table.add_row(
            peer.peer,
            what,
            f"{number(median(peer.ours))} {peer.unit}",
            number(median(peer.theirs)),
            f"{peer.ratio:.3f}",
            f"{peer.spread:.1%}",
        )
    console.print(table)
    console.print("ratio: ours over theirs, median of the rounds; spread: max over min of the "
                  "peer's own rounds", style="dim", highlight=False)
    for note in distinct(f"{peer.peer}: {peer.note}" for peer in peers if peer.note):
        console.print(note, style="dim", highlight=False)


def show_comparison(console: Console, comparison: Comparison) -> None:
    """Print what moved between two runs; figures within the noise are only counted."""
    moved = [change for change in comparison.changes if change.verdict != "same"]
    console.print()
    for warning in comparison.warnings:
        console.print(f"warning: {warning}", style="yellow", highlight=False)
    if comparison.changes:
        _print_title(console, "Compared with the earlier run")
        table = _table()
        table.add_column("figure", overflow="fold")
        for name in ("old", "new", "ratio", "noise", ""):
            table.add_column(name, justify="right", no_wrap=True)
        for change in moved or comparison.changes:
            new = change.new
            table.add_row(
                f"{new.metric} {pair_name(new)} {describe(new.params)}".strip(),
                number(change.old.median),
                f"{number(new.median)} {new.unit}",
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


def _print_sweeps(console: Console, results: Sequence[Result]) -> None:
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
        drawn = sparkline([result.median for result in line], is_ascii(console))
        console.print(
            f"{pair_name(first)} {pages:>3} {drawn} "
            f"{format_size(int(first.params['size_bytes']))} to "
            f"{format_size(int(last.params['size_bytes']))}: "
            f"{number(first.median)} to {number(last.median)} {first.unit}",
            highlight=False,
        )
