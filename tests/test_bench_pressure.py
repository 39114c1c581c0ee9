"""The bench of pressure: which figures it takes, and that what is wanted is what is there."""

from __future__ import annotations

import pytest

import realmem as rm
from realmem.bench import pressure, registry
from realmem.bench.registry import Options


def test_it_is_one_of_the_benches():
    assert "pressure" in registry.names() and registry.get("pressure") is pressure.BENCH


def test_figures():
    said = []
    results = list(pressure.run(Options(quick=True, progress=said.append)))
    wanted = ["idle", *(f"{percent} %" for percent in pressure.QUICK_WANTED)]
    assert [(r.params["wanted"], r.metric) for r in results] == [
        (each, metric) for each in wanted for metric in ("p50", "p99", "p99.9", "stores")]
    assert all(len(r.samples) == 3 and min(r.samples) > 0 for r in results)
    assert all(r.higher_is_better == (r.unit == "1/s") for r in results)
    assert len(said) == len(wanted)


@pytest.mark.parametrize("by", ["raw", "software MMU"])
@pytest.mark.parametrize(("wanted", "swaps"), [("idle", False), (50, False), (150, True)])
def test_what_is_wanted(tmp_path, wanted, swaps, by):
    with rm.Machine(1, "16M", window="1G") as machine:
        machine.swapon(tmp_path / "swap", size=64 << 20)
        free = machine.nodes[0].free_pages
        list(pressure._figures(machine, wanted, by, 1, 0))
        (p,) = machine.processes.values()
        pages = 1 if wanted == "idle" else free * wanted // 100
        assert abs(p.rss + p.swap - pages) <= free // 50
        assert (machine.vmstat["pswpin"] > 0) == swaps
        machine.check()
