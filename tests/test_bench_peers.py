"""Finding, running and reading the peer programs, on stand-ins and samples of their output."""

import os
import sys
from pathlib import Path

import pytest

from realmem.bench import bandwidth, latency, memory, peers
from realmem.bench.registry import Options
from realmem.errors import HostError

CPUS = sorted(os.sched_getaffinity(0))[:1]

STREAM = """\
-------------------------------------------------------------
STREAM version $Revision: 5.10 $
-------------------------------------------------------------
This system uses 8 bytes per array element.
-------------------------------------------------------------
Array size = 100000 (elements), Offset = 0 (elements)
Each kernel will be executed 4 times.
Number of Threads requested = 2
Number of Threads counted = 2
-------------------------------------------------------------
Function    Best Rate MB/s  Avg time     Min time     Max time
Copy:           20500.0     0.008124     0.007805     0.008691
Scale:          27917.8     0.006176     0.005731     0.007757
Add:            27241.6     0.009361     0.008810     0.010134
Triad:          26684.9     0.009509     0.008994     0.010603
-------------------------------------------------------------
Solution Validates: avg error less than 1.000000e-13 on all three arrays
-------------------------------------------------------------
"""


def program(folder: Path, name: str, text: str) -> Path:
    """Put a stand-in into a folder: a shell script that prints something."""
    path = folder / name
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return path


def test_parse_stream():
    found = peers.parse_stream(STREAM)
    assert (found.elements, found.passes, found.threads) == (100000, 4, 2)
    assert found.rates == pytest.approx(
        {"copy": 20.5, "scale": 27.9178, "add": 27.2416, "triad": 26.6849}
    )


@pytest.mark.parametrize("text", ["", "Copy: 1.0", STREAM.replace("Triad:", "Quad:"),
                                  STREAM.replace("Array size", "Array"),
                                  STREAM + "Failed Validation on array a[]"])
def test_parse_stream_refuses(text):
    with pytest.raises(HostError, match="STREAM"):
        peers.parse_stream(text)


@pytest.mark.parametrize(("text", "value"), [(" 137.2\n", 137.2), ("note: x\n  1.203\n", 1.203)])
def test_parse_multichase(text, value):
    assert peers.parse_multichase(text) == value


@pytest.mark.parametrize("text", ["", "usage: multichase", "nan", "inf", "0", "-3"])
def test_parse_multichase_refuses(text):
    with pytest.raises(HostError, match="no latency"):
        peers.parse_multichase(text)


def test_find(tmp_path):
    path = program(tmp_path, "multichase", "true")
    assert peers.find(tmp_path, "multichase") == path
    assert peers.find(tmp_path, "stream") is None
    assert peers.find(None, "multichase") is None
    path.chmod(0o644)
    found = peers.find(tmp_path, "multichase")
    assert found is None or os.access(path, os.X_OK)


def test_programs_run_where_they_are_told(tmp_path):
    path = program(tmp_path, "where", 'grep Cpus_allowed_list /proc/self/status; echo "$MARK"')
    before = os.sched_getaffinity(0)
    said = peers.run_program([str(path)], CPUS, {"MARK": "x y"}).splitlines()
    assert said == [f"Cpus_allowed_list:\t{CPUS[0]}", "x y"]
    assert os.sched_getaffinity(0) == before


def test_failures_of_programs_are_told(tmp_path, monkeypatch):
    bad = program(tmp_path, "bad", "echo first >&2; echo why >&2; exit 3")
    with pytest.raises(HostError, match=r"bad failed \(3\): why"):
        peers.run_program([str(bad)], CPUS)
    with pytest.raises(HostError, match="cannot run none"):
        peers.run_program([str(tmp_path / "none")], CPUS)
    monkeypatch.setattr(peers, "_TIMEOUT_S", 0.2)
    slow = program(tmp_path, "slow", "exec sleep 60")
    with pytest.raises(HostError, match="slow did not end within"):
        peers.run_program([str(slow)], CPUS)


def test_turns_alternate_and_pair():
    log = []

    def figure(name):
        def take():
            log.append(name)
            return float(len(log))
        return take

    ours, theirs = peers.in_turns(3, figure("a"), figure("b"))
    assert "".join(log) == "ab" "ba" "ab"
    assert (ours, theirs) == ((1.0, 4.0, 5.0), (2.0, 3.0, 6.0))


@pytest.mark.parametrize("bench", [latency, bandwidth])
def test_absent_peers_are_said_to_be(bench, tmp_path):
    for folder in (None, tmp_path, tmp_path / "missing"):
        found = list(bench.run_peers(Options(peers_dir=folder)))
        assert found and not any(peer.present for peer in found)


def test_beside_stand_in_streams(tmp_path):
    one_thread = STREAM.replace("counted = 2", "counted = 1")
    for name in ("stream", "stream_other"):
        program(tmp_path, name, f"cat <<'END'\n{one_thread}\nEND")
    (tmp_path / "stream.c").write_text("int main;")         # no program
    found = list(bandwidth.run_peers(Options(quick=True, threads=1, peers_dir=tmp_path)))
    assert [peer.metric for peer in found] == ["copy", "scale", "add", "triad"] * 2
    assert found[0].params == {"pages": "4K", "threads": 1, "array_bytes": 800000}
    assert set(found[0].theirs) == {20.5}
    assert all(rate > 0 for peer in found for rate in peer.ours)


def test_a_stream_without_threads_is_not_compared_with_threads(tmp_path):
    program(tmp_path, "stream", f"cat <<'END'\n{STREAM}\nEND")
    assert list(bandwidth.run_peers(Options(quick=True, threads=1, peers_dir=tmp_path))) == []


def test_huge_pages_of_a_running_program_are_seen(tmp_path):
    huge = program(tmp_path, "huge", f"""exec {sys.executable} - <<'END'
import mmap, time
area = mmap.mmap(-1, 16 << 20, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
area.madvise(mmap.MADV_HUGEPAGE)
for at in range(0, 16 << 20, 4096):
    area[at] = 1
time.sleep(0.3)
END""")
    seen = []
    peers.run_program([str(huge)], CPUS, watch=lambda pid: seen.append(peers.anon_huge_bytes(pid)))
    if "2M" not in memory.default_pages():
        pytest.skip("this host gives no huge pages")
    assert max(seen) >= 8 << 20
    assert peers.anon_huge_bytes(2**22 + 1) == 0


def test_beside_a_stand_in_multichase(tmp_path, monkeypatch):
    program(tmp_path, "multichase", 'echo "$@" >> "$0.log"; echo " 1.500"')
    monkeypatch.setattr(latency, "PEER_SIZES", (16 << 10,))
    monkeypatch.setattr(latency, "PEER_SAMPLE_NS", 1_000_000)
    found = list(latency.run_peers(Options(quick=True, peers_dir=tmp_path)))
    assert found[0].theirs == (1.5, 1.5)
    assert found[0].params["size_bytes"] == 16384
    first = (tmp_path / "multichase.log").read_text().splitlines()[0]
    assert first == "-m 16384 -T 16384 -s 64 -n 2"


def test_multichase_may_not_change_the_host(tmp_path, monkeypatch):
    """With -H it writes to transparent_hugepage what suits it."""
    program(tmp_path, "multichase", 'echo "$@" >> "$0.log"; echo " 1.500"')
    monkeypatch.setattr(latency, "PEER_SIZES", (16 << 10,))
    monkeypatch.setattr(latency, "PEER_SAMPLE_NS", 1_000_000)
    monkeypatch.setattr(latency.memory, "default_pages", lambda: ("4K", "2M"))
    monkeypatch.setattr(latency.limits, "choice", lambda text: "never")
    found = list(latency.run_peers(Options(quick=True, peers_dir=tmp_path)))
    assert [peer.present for peer in found] == [True, False]
    assert "would change" in found[1].note
    assert "-H" not in (tmp_path / "multichase.log").read_text()
