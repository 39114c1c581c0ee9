"""Mutants of the page allocator: its tests notice when it is broken (all: make mutants)."""

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
    del sys.modules["mutants"]


def test_every_mutant_changes_what_stands_there(tool):
    names = [mutant.name for mutant in tool.MUTANTS]
    assert len(names) == len(set(names)) >= 25
    assert set(tool.FAST) <= set(names)
    for mutant in tool.MUTANTS:
        assert tool.mutate(mutant) != (tool.CYTHON / "realmem" / mutant.file).read_text()


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
    assert f"{len(tool.FAST)} of {len(tool.FAST)} mutants noticed" in capsys.readouterr().out
