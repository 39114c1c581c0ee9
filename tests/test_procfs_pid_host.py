"""
The files of a process, held against the running kernel's: its own figures, read into our model
and written again, must come out byte for byte.
"""

from __future__ import annotations

import os
import re
import subprocess
from itertools import pairwise
from pathlib import Path

import pytest

from realmem.procfs.pid import maps, numa_maps, smaps, stat, status

BUSY = """
import ctypes, mmap, sys
libc = ctypes.CDLL(None, use_errno=True)
keep = [mmap.mmap(-1, 1 << 20), mmap.mmap(-1, 1 << 20, flags=mmap.MAP_PRIVATE)]
for area, advice in ((keep[1], 14), (keep[1], 16), (keep[1], 18), (keep[0], 1)):
    area[:65536] = b"x" * 65536
    area.madvise(advice, 8192, 4096)
    area.madvise(advice)
libc.mlock(ctypes.c_void_p(ctypes.addressof(ctypes.c_char.from_buffer(keep[0]))), 4096)
libc.mlockall(4 | 1)
sys.stdin.readline()
"""


@pytest.fixture(scope="module")
def busy():
    """Give the /proc directory of a process with mappings of many kinds."""
    import sys

    with subprocess.Popen([sys.executable, "-c", BUSY + "print()\n"], stdin=subprocess.PIPE,
                          stdout=subprocess.DEVNULL) as child:
        proc = Path("/proc", str(child.pid))
        for _ in range(1000):
            if b"lf" in (proc / "smaps").read_bytes() or child.poll() is not None:
                break
            os.sched_yield()
        yield proc
        child.communicate(b"\n")


def text_of(proc, name):
    try:
        return (proc / name).read_text()
    except OSError as error:
        pytest.skip(f"{proc / name}: {error.strerror}")


def everyone():
    yield Path("/proc/self")
    yield from sorted(Path("/proc").glob("[1-9]*"))[:20]


def texts(name):
    for proc in everyone():
        try:
            yield (proc / name).read_text()
        except OSError:             # it has exited, or is none of our business
            continue


@pytest.mark.conformance("PF-05")
def test_maps(busy):
    for text in [text_of(busy, "maps"), *texts("maps")]:
        areas = maps.parse_maps(text)
        assert maps.format_maps(areas) == text
        assert all(a.end <= b.start for a, b in pairwise(areas))
    found = maps.parse_maps(text_of(busy, "maps"))
    assert {"[heap]", "[stack]", "/dev/zero (deleted)"} <= {area.name for area in found}
    shared = next(area for area in found if area.name == "/dev/zero (deleted)")
    assert (shared.major, shared.minor) == maps.ANON_DEVICE and shared.perms == "rw-s"


@pytest.mark.conformance("PF-06")
def test_smaps(busy):
    text = text_of(busy, "smaps")
    if "ProtectionKey" in text:
        pytest.skip("this CPU has protection keys, a line more")
    assert smaps.format_smaps(smaps.parse_smaps(text)) == text
    for entry in smaps.parse_smaps(text):
        assert tuple(entry.kb) == smaps.SMAPS_FIELDS


def test_smaps_of_everyone():
    for text in texts("smaps"):
        if "ProtectionKey" not in text:
            assert smaps.format_smaps(smaps.parse_smaps(text)) == text


@pytest.mark.conformance("PF-13")
def test_vm_flags_are_named_in_the_kernels_order(busy):
    order = {name: bit for bit, name in smaps.FLAG_NAMES.items()}
    seen = set()
    for entry in smaps.parse_smaps(text_of(busy, "smaps")):
        assert smaps.flag_names(sum(1 << order[name] for name in entry.flags)) == entry.flags
        seen.update(entry.flags)
    assert {"rd", "wr", "mr", "mw", "me", "ac", "sh", "ms", "lo", "lf", "wf", "dd", "gd"} <= seen


def test_rollup(busy):
    text = text_of(busy, "smaps_rollup")
    (entry,) = smaps.parse_smaps(text)
    assert tuple(entry.kb) == smaps.ROLLUP_FIELDS
    assert smaps.format_rollup(entry.area.start, entry.area.end, entry.kb) == text
    assert entry.area.name == "[rollup]"


def test_numa_maps(busy):
    for text in [text_of(busy, "numa_maps"), *texts("numa_maps")]:
        assert numa_maps.format_numa_maps(numa_maps.parse_numa_maps(text)) == text
    found = numa_maps.parse_numa_maps(text_of(busy, "numa_maps"))
    assert any(area.place == "file=/dev/zero\\040(deleted)" for area in found)
    assert {"heap", "stack"} <= {area.place for area in found}


def test_stat(busy):
    text = text_of(busy, "stat")
    fields = stat.parse_stat(text)
    assert stat.format_stat(fields) == text
    assert fields["pid"] == int(busy.name)
    assert stat.format_statm(stat.parse_statm(text_of(busy, "statm"))) == text_of(busy, "statm")


def test_stat_of_an_odd_name():
    text = "1 (a) (b)) R " + " ".join(["0"] * 49) + "\n"
    assert stat.parse_stat(text)["comm"] == "a) (b)"
    assert stat.format_stat(stat.parse_stat(text)) == text


def test_status():
    """Our record of a host process gives its text; masks that ours leave empty are left out."""
    text = subprocess.run(["cat", "/proc/self/status"], capture_output=True, text=True).stdout
    lines = dict(line.split(":\t", 1) for line in text.splitlines())
    if "NStgid" not in lines or "x86_Thread_features" in lines or "\t" in lines["NSpid"]:
        pytest.skip("this kernel has other lines, or runs us in a pid namespace of our own")
    memory = {
        attribute: int(lines[name].split()[0]) for name, attribute in status._MEMORY
    }
    record = status.StatusRecord(
        name="cat", pid=int(lines["Pid"]), ppid=int(lines["PPid"]),
        uid=int(lines["Uid"].split()[0]), umask=int(lines["Umask"], 8), state=lines["State"],
        pgid=int(lines["NSpgid"]), sid=int(lines["NSsid"]), fd_size=int(lines["FDSize"]),
        memory=status.MemoryLines(**memory), thp_enabled=int(lines["THP_enabled"]),
        pending_limit=int(lines["SigQ"].split("/")[1]), capabilities=int(lines["CapEff"], 16),
        bounding=int(lines["CapBnd"], 16),
        cpus=status_list(lines["Cpus_allowed_list"]), mems=status_list(lines["Mems_allowed_list"]),
        nr_cpus=4 * len(lines["Cpus_allowed"]),
        bugs=(lines["Speculation_Store_Bypass"], lines["SpeculationIndirectBranch"]),
        switches=(int(lines["voluntary_ctxt_switches"]),
                  int(lines["nonvoluntary_ctxt_switches"])),
    )  # fmt: skip
    ours = status.format_status(record)
    empty = re.compile(r"^((?:Sig|Shd)\w{3}|Cap(?:Inh|Amb)):\t[0-9a-f]{16}$", re.M)
    left_out = re.compile(r"^(SigQ:\t)\d+|^(Groups:\t).*|^((?:NoNewPrivs|Seccomp\w*):\t)\d+", re.M)
    for pattern, to in ((empty, r"\1:\t*"), (left_out, r"\1\2\3")):
        ours, text = pattern.sub(to, ours), pattern.sub(to, text)
    assert ours == text


def status_list(text):
    from realmem.procfs.masks import parse_list

    return parse_list(text)


def test_capabilities_are_numbered_as_the_kernels():
    last = int(Path("/proc/sys/kernel/cap_last_cap").read_text())
    assert len(status.CAPABILITIES) == last + 1
    assert status.CAPABILITIES.index("SYS_ADMIN") == 21
    assert status.CAPABILITIES.index("IPC_LOCK") == 14
