"""Mutants of the allocators: their tests notice when they are broken (all: make mutants)."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import pytest

TOOLS = Path(__file__).resolve().parent.parent / "tools"


@pytest.fixture
def tool(monkeypatch):
    if not (TOOLS / "mutants.py").exists():
        pytest.skip("tools/ is not beside tests/ (installed without the sources)")
    monkeypatch.syspath_prepend(str(TOOLS))
    import mutants

    yield mutants
    for name in ("mutants", "mutants_cow", "mutants_mm", "mutants_pages", "mutants_runs",
                 "mutants_slab", "mutants_thp", "mutation"):
        del sys.modules[name]


def test_every_mutant_changes_what_stands_there(tool):
    mutants = [mutant for suite in tool.SUITES.values() for mutant in suite.mutants]
    assert len(mutants) == len({mutant.name for mutant in mutants}) >= 190
    for suite in tool.SUITES.values():
        assert set(suite.fast) <= {mutant.name for mutant in suite.mutants}
    for mutant in mutants:
        assert tool.mutate(mutant) != tool.source_of(mutant).read_text()


def test_a_mutant_of_nothing_is_refused(tool):
    with pytest.raises(ValueError, match="stands 0 times"):
        tool.mutate(tool.Mutant("nothing", "_kernel/buddy.pyx", "no such line", ""))


@pytest.mark.slow
@pytest.mark.crash
def test_some_mutants_are_noticed(tool, capsys):
    pytest.importorskip("Cython", reason="Cython is not installed: mutants cannot be built")
    if not shutil.which("cc"):
        pytest.skip("there is no C compiler")
    assert tool.main(["--fast"]) == 0, capsys.readouterr()
    few = sum(len(suite.fast) for suite in tool.SUITES.values())
    assert f"{few} of {few} mutants noticed" in capsys.readouterr().out
