"""Where ours stands beside the fastest of several peers."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from realmem.bench.results import PeerResult
from realmem.bench.standing import standings
from realmem.cli import bench_view


def row(peer, ours, theirs, **params):
    return PeerResult("toy", peer, "pair", "ns", ours=ours, theirs=theirs, params=params)


def test_the_fastest_of_each_row_counts():
    found = standings([
        row("a", (2.0, 3.0, 4.0), (4.0, 6.0, 8.0), size=8),
        row("b", (2.0, 3.0, 4.0), (1.0, 12.0, 12.0), size=8),     # fastest by its minimum only
        row("a", (6.0, 6.0, 6.0), (9.0, 9.0, 9.0), size=64),
        row("b", (6.0, 6.0, 6.0), (3.0, 3.0, 3.0), size=64),
    ])
    assert len(found) == 1
    assert (found[0].what, found[0].rows) == ("pair", 2)
    assert found[0].mean == pytest.approx((0.5 * 2.0) ** 0.5)
    assert found[0].worst == pytest.approx(2.0)
    assert found[0].mean_of_minima == pytest.approx((2.0 * 2.0) ** 0.5)
    assert found[0].worst_of_minima == pytest.approx(2.0)


def test_patterns_stand_apart():
    rows = [row(peer, (1.0,), (2.0,), pattern=pattern, size=size)
            for pattern in ("same", "passed") for size in (8, 64) for peer in "ab"]
    assert [(one.what, one.rows) for one in standings(rows)] == [("pair same", 2),
                                                                ("pair passed", 2)]


def test_one_peer_or_one_row_is_no_standing():
    assert standings([row("a", (1.0,), (2.0,), size=8), row("a", (1.0,), (2.0,), size=9)]) == []
    assert standings([row("a", (1.0,), (2.0,), size=8), row("b", (1.0,), (2.0,), size=8)]) == []


def test_peers_that_are_missing_do_not_count():
    missing = PeerResult("toy", "c", "pair", "ns")
    rows = [row(peer, (1.0,), (2.0,), size=size) for size in (8, 64) for peer in "ab"]
    assert standings([missing, *rows]) == standings(rows)
    assert standings([missing]) == []


@pytest.mark.parametrize("width", [50, 60, 80])
def test_the_table_fits(width):
    rows = [row(peer, (1.0,), (2.0,), pattern="random", size=size)
            for size in (8, 64) for peer in "ab"]
    console = Console(file=io.StringIO(), width=width)
    bench_view.show_peers(console, rows)
    text = console.file.getvalue()
    assert max(map(len, text.splitlines())) <= width
    assert "pair random" in text.split("row by row")[1]
    assert ("worst of min" in text) == (width == 80)
