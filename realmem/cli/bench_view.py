"""How ``realmem bench`` looks on a terminal: tables, bars, sparklines."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from realmem.bench.facts import is_busy
from realmem.bench.standing import Standing, standings
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
from realmem.cli.grid import Column, Grid, figures, first_that_fits
from realmem.layout import format_size

if TYPE_CHECKING:
    from rich.console import Console

    from realmem.bench.compare import Change, Comparison
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
    facts = [f"{param_name(name)} {param_text(name, value)}" for name, value in shared.items()]
    if len(distinct((result.cpu_node, result.memory_node) for result in results)) > 1:
        _print_matrix(console, results, varying)
    elif not _print_rows(console, results, varying):
        facts.insert(0, f"cpu>mem {pair_name(results[0])}")
    _print_sweeps(console, results)
    stamps = distinct(result.stamps for result in results)
    if len(stamps) == 1 and stamps[0]:
        facts.insert(0, f"stamped {', '.join(stamps[0])}")
    if facts:
        console.print("; ".join(facts), style="dim", highlight=False)


def _print_lonely(console: Console, title: str, results: Sequence[Result]) -> None:
    """Print figures that have no others of their kind, their parameters in words."""
    _print_title(console, f"{title}: more")

    def layout(has_pair: bool) -> Grid:
        columns = [Column("what", wraps=True), *([Column("cpu>mem")] if has_pair else [])]
        rows = []
        for result in results:
            words = [result.metric, describe(result.params)]
            if not has_pair:
                words.append(pair_name(result))
            if result.stamps:
                words.append(f"({', '.join(result.stamps)})")
            labels = [" ".join(filter(None, words)), *([pair_name(result)] if has_pair else [])]
            rows.append([*labels, *_three(result), result.unit])
        return Grid([*columns, *figures("min", "median", "p95"), Column("unit")], rows)

    layouts = [partial(layout, True), partial(layout, False)]
    console.print(first_that_fits(console, layouts)[1].table())


def _print_title(console: Console, title: str) -> None:
    """Print a table's title: rich would wrap it to the width of the table."""
    console.print()
    console.print(title, style="bold", highlight=False)


def _three(result: Result) -> list[str]:
    return [number(value) for value in (result.min, result.median, result.p95)]


def _print_rows(console: Console, results: Sequence[Result], varying: Sequence[str]) -> bool:
    """
    Print one row for each figure, with a bar where there is room.

    :return: whether the table shows the pair of nodes, which all figures share, if there is one.
    """
    stamps = distinct(result.stamps for result in results)
    has_pair = any(pair_name(result) for result in results)
    drawn = bars(console, results)

    def layout(apart: bool, pair: bool, drawn: Sequence[str]) -> Grid:
        columns, labels = _labels(results, varying, apart)
        columns += [Column("cpu>mem")] if pair else []
        columns += figures("min", "median", "p95")
        columns += [Column("stamp")] if len(stamps) > 1 else []
        columns += [Column("")] if drawn else []
        rows = [
            [
                *label,
                *([pair_name(result)] if pair else []),
                *_three(result),
                *([", ".join(result.stamps)] if len(stamps) > 1 else []),
                *([bar] if drawn else []),
            ]
            for result, label, bar in zip(
                results, labels, drawn or [""] * len(results), strict=True
            )
        ]
        return Grid(columns, rows)

    full = layout(True, has_pair, drawn)
    if full.width <= console.width:
        console.print(full.table())
        return True
    layouts = [
        partial(layout, True, has_pair, []), partial(layout, True, False, []),
        partial(layout, False, False, []),
    ]
    chosen, grid = first_that_fits(console, layouts)
    console.print(grid.table())
    return not has_pair or chosen == 0


def _labels(
    results: Sequence[Result], varying: Sequence[str], apart: bool
) -> tuple[list[Column], list[list[str]]]:
    """
    Say what each row is.

    :param apart: give every parameter a column; False puts all of them into words.
    :return: columns, and their texts for each row.
    """
    has_metrics = len(distinct(result.metric for result in results)) > 1
    if apart:
        columns = [Column("what", wraps=True)] if has_metrics else []
        return columns + figures(*map(param_name, varying)), [
            [result.metric] * has_metrics
            + [param_text(name, result.params.get(name)) for name in varying]
            for result in results
        ]
    return [Column("what", wraps=True)], [
        [
            ", ".join(
                [result.metric] * has_metrics
                + [describe({name: result.params[name]})
                   for name in varying if name in result.params]
            )
        ]
        for result in results
    ]


def _print_matrix(console: Console, results: Sequence[Result], varying: Sequence[str]) -> None:
    """Print pairs of nodes as columns, as many at a time as fit side by side."""
    stamps = distinct(result.stamps for result in results)
    names = distinct(pair_name(result) or "any" for result in results)
    rows: dict[tuple[Any, ...], dict[str, Result]] = {}
    for result in results:
        key = (result.metric, *(result.params.get(name) for name in varying))
        rows.setdefault(key, {})[pair_name(result) or "any"] = result
    firsts = [next(iter(row.values())) for row in rows.values()]

    def layout(wide: bool, apart: bool, part: Sequence[str]) -> Grid:
        columns, labels = _labels(firsts, varying, apart)
        return Grid([*columns, *figures(*part)], [
            [*label, *(_cell(row.get(name), wide, len(stamps) > 1) for name in part)]
            for label, row in zip(labels, rows.values(), strict=True)
        ])

    wide = layout(True, True, names).least_width <= console.width
    apart = wide or all(layout(False, True, [name]).least_width <= console.width for name in names)
    at = 0
    while at < len(names):
        count = 1
        while (at + count < len(names) and layout(
                wide, apart, names[at : at + count + 1]).least_width <= console.width):
            count += 1
        console.print(layout(wide, apart, names[at : at + count]).table())
        at += count
    below = "median, and min to p95 below it" if wide else "medians; the rest is in --json FILE"
    if len(stamps) > 1:
        below += "; * " + ", ".join(sorted({word for stamp in stamps for word in stamp}))
    console.print(f"cpu>mem nodes: {below}", style="dim", highlight=False)


def _cell(result: Result | None, wide: bool, starred: bool) -> str:
    if result is None:
        return ""
    text = number(result.median) + ("*" if starred and result.stamps else "")
    return f"{text}\n{number(result.min)}-{number(result.p95)}" if wide else text


def show_peers(console: Console, peers: Sequence[PeerResult]) -> None:
    """Print ours beside the peer programs', with the ratio and the peer's own spread."""
    _print_title(console, "Beside other programs, in turns")

    def layout(apart: bool) -> Grid:
        rows = []
        for peer in peers:
            what = f"{peer.metric} {describe(peer.params)}".strip()
            labels = [peer.peer, what] if apart else [f"{peer.peer} {what}"]
            if peer.present:
                rows.append([
                    *labels,
                    f"{number(median(peer.ours))} {peer.unit}",
                    number(median(peer.theirs)),
                    f"{peer.ratio:.3f}",
                    f"{peer.spread:.1%}",
                ])
            else:
                rows.append([*labels, "", "not present", "", ""])
        return Grid([
            *([Column("peer")] if apart else []),
            Column("what", wraps=True),
            *figures("ours", "theirs", "ratio", "spread"),
        ], rows)

    layouts = [partial(layout, True), partial(layout, False)]
    console.print(first_that_fits(console, layouts)[1].table())
    console.print("ratio: ours over theirs, median of the rounds; spread: max over min of the "
                  "peer's own rounds", style="dim", highlight=False)
    for note in distinct(f"{peer.peer}: {peer.note}" for peer in peers if peer.note):
        console.print(note, style="dim", highlight=False)
    _show_standings(console, standings(peers))


def _show_standings(console: Console, found: Sequence[Standing]) -> None:
    if not found:
        return
    _print_title(console, "Ours over the fastest of the others, row by row")

    def layout(minima: bool) -> Grid:
        names = ["rows", "mean", "worst", *(["mean of min", "worst of min"] if minima else [])]
        rows = []
        for one in found:
            ratios = [one.mean, one.worst]
            if minima:
                ratios += [one.mean_of_minima, one.worst_of_minima]
            rows.append([one.what, str(one.rows), *(f"{ratio:.2f}" for ratio in ratios)])
        return Grid([Column("what"), *figures(*names)], rows)

    layouts = [partial(layout, True), partial(layout, False)]
    console.print(first_that_fits(console, layouts)[1].table())
    console.print("geometric means of ratios of medians, and of minima", style="dim",
                  highlight=False)


def show_comparison(console: Console, comparison: Comparison) -> None:
    """Print what moved between two runs; figures within the noise are only counted."""
    moved = [change for change in comparison.changes if change.verdict != "same"]
    console.print()
    for warning in comparison.warnings:
        console.print(f"warning: {warning}", style="yellow", highlight=False)
    if comparison.changes:
        _print_title(console, "Compared with the earlier run")
        layouts = [
            partial(_changes, moved or comparison.changes, names)
            for names in (("old", "new", "ratio", "noise"), ("new", "ratio", "noise"),
                          ("new", "ratio"))
        ]
        console.print(first_that_fits(console, layouts)[1].table())
    console.print(
        f"{len(comparison.changes) - len(moved)} of {len(comparison.changes)} figures within "
        f"their noise; {len(comparison.only_old)} only then, {len(comparison.only_new)} only now",
        highlight=False,
    )


def _changes(changes: Sequence[Change], names: Sequence[str]) -> Grid:
    rows = []
    for change in changes:
        new = change.new
        texts = {
            "old": number(change.old.median),
            "new": f"{number(new.median)} {new.unit}",
            "ratio": f"{change.ratio:.2f}",
            "noise": f"{change.band[0]:.2f}-{change.band[1]:.2f}",
        }
        what = f"{new.metric} {pair_name(new)} {describe(new.params)}"
        rows.append([" ".join(what.split()), *(texts[name] for name in names), change.verdict])
    return Grid([Column("figure", wraps=True), *figures(*names, "")], rows)


def _print_sweeps(console: Console, results: Sequence[Result]) -> None:
    """Print one sparkline for each series of at least four sizes."""
    series: dict[tuple[Any, ...], list[Result]] = {}
    for result in results:
        others = tuple((k, v) for k, v in result.params.items() if k != "size_bytes")
        if "size_bytes" in result.params:
            key = (result.metric, result.cpu_node, result.memory_node, others)
            series.setdefault(key, []).append(result)
    several = len({metric for metric, *_ in series}) > 1
    for line in series.values():
        if len(line) < 4:
            continue
        line.sort(key=lambda result: int(result.params["size_bytes"]))
        first, last = line[0], line[-1]
        name = first.metric if several else first.params.get("pages", "")
        drawn = sparkline([result.median for result in line], is_ascii(console))
        console.print(
            f"{pair_name(first)} {name:>3} {drawn} "
            f"{format_size(int(first.params['size_bytes']))} to "
            f"{format_size(int(last.params['size_bytes']))}: "
            f"{number(first.median)} to {number(last.median)} {first.unit}",
            highlight=False,
        )
