"""The guests' topologies are what the tests in them rely on."""

import importlib
from pathlib import Path

import pytest

TOOLS = Path(__file__).resolve().parents[2] / "tools"


@pytest.fixture
def guest(monkeypatch):
    monkeypatch.syspath_prepend(str(TOOLS))
    return importlib.import_module("guest")


def test_distances_are_symmetric_and_complete(guest):
    for topology in guest.TOPOLOGIES.values():
        rows = topology.distance
        assert len(rows) == len(topology.nodes)
        for at, row in enumerate(rows):
            assert row[at] == 10
            assert list(row) == [other[at] for other in rows]
            assert all(value > 10 for there, value in enumerate(row) if there != at)


def test_four_nodes_with_one_memory_only_and_an_order_worth_testing(guest):
    four = guest.TOPOLOGIES["four"]
    assert [cpus for _, cpus in four.nodes].count(None) == 1
    by_distance = [sorted(range(4), key=row.__getitem__) for row in four.distance]
    by_number = [[at, *(n for n in range(4) if n != at)] for at in range(4)]
    assert sum(a != b for a, b in zip(by_distance, by_number, strict=True)) >= 2


def test_words_for_the_command_line(guest):
    words = guest.arguments(guest.TOPOLOGIES["two"])
    assert words == ["--cpus", "4", "--memory", "2048M", "--numa", "1024M,cpus=0-1",
                     "--numa", "1024M,cpus=2-3", "--numa-distance", "0,1=21",
                     "--numa-distance", "1,0=21"]
    four = guest.arguments(guest.TOPOLOGIES["four"])
    assert four.count("--numa-distance") == 12 and "640M" in four


def test_no_kernel_is_said(guest, monkeypatch, tmp_path):
    monkeypatch.setattr(guest.sysdeps, "guest_kernels", list)
    said = []
    status = guest.boot(guest.TOPOLOGIES["two"], "true", tmp_path, take=said.append)
    assert status == guest.NOT_BOOTED and said == ["no guest kernel in /boot"]


def test_a_guest_that_does_not_boot_is_ended_and_shown(guest, monkeypatch, tmp_path):
    """A kernel that is none: vng or qemu gives up, and what it said is shown."""
    pytest.importorskip("virtme_ng", reason="virtme-ng is not installed (make test-numa)")
    kernel = tmp_path / "vmlinuz-0"
    kernel.write_bytes(b"no kernel")
    monkeypatch.setattr(guest.sysdeps, "guest_kernels", lambda: [kernel])
    said = []
    status = guest.boot(guest.TOPOLOGIES["two"], "true", tmp_path, boot_s=20, take=said.append)
    assert status == guest.NOT_BOOTED
    assert any("did not boot" in line for line in said), said
    assert list(tmp_path.glob(".guest-*")) == []
