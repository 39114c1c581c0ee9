"""The ledger of Linux's behaviours: every line has a test, or a reason why not."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest

TOOL = Path(__file__).resolve().parent.parent / "tools" / "conformance.py"


@pytest.fixture(scope="module")
def tool():
    if not TOOL.exists():
        pytest.skip("tools/ is not beside tests/ (installed without the sources)")
    return runpy.run_path(str(TOOL))


def test_every_line_is_answered_for(tool):
    ledger, found = tool["read_ledger"](), tool["marked_tests"]()
    assert tool["problems"](ledger, found) == []


def test_at_most_a_tenth_of_an_area_is_left_out(tool):
    ledger = tool["read_ledger"]()
    for area, (out, lines) in tool["left_out"](ledger).items():
        assert out <= lines / 10, f"{area}: {out} of {lines} lines are left out"


def test_whole_areas_are_listed(tool):
    """The allocator's own areas may not call anything unreachable."""
    rows = tool["read_ledger"]().items()
    counts = {"BD": 25, "WM": 14, "PC": 7, "GF": 8, "CT": 15, "PF": 20, "QL": 5, "VL": 13}
    for area, count in counts.items():
        statuses = [row["status"] for line, row in rows if line.startswith(area + "-")]
        assert len(statuses) == count
        assert area not in ("BD", "WM", "PC", "QL", "VL") or "unreachable" not in statuses


def test_a_wrong_ledger_is_noticed(tool):
    ledger = tool["read_ledger"]()
    found = {line: ["x"] for line, row in ledger.items() if row["status"] == "test"}
    assert tool["problems"](ledger, found) == []
    without = {line: tests for line, tests in found.items() if line != "WM-01"}
    assert any("WM-01: no test" in problem for problem in tool["problems"](ledger, without))
    assert any("XX-01" in problem for problem in tool["problems"](ledger, {**found, "XX-01": "x"}))
    bad = {**ledger, "FK-25": {**ledger["FK-25"], "reason": ""}}
    assert any("no reason" in problem for problem in tool["problems"](bad, found))
