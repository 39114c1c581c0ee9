"""The texts that describe a process, made from what a test says its pages are."""

from __future__ import annotations

import errno

import pytest
from fake_process import FakeCore, FakeMachine, FakeProcess, FakeShmem, a_vma

from realmem.layout import PAGE_SIZE
from realmem.procfs import ProcFS
from realmem.procfs.pid import clear_refs, maps, numa_maps, pagemap, smaps, stat, status
from realmem.thp import ThpSettings

A = 0x7F0000000000


def parts(text):
    return dict(line.split(":", 1) for line in text.splitlines())


@pytest.mark.conformance("PF-05")
def test_maps():
    p = FakeProcess([
        a_vma(0x10000000, 0x10002000, name="in the heap"),
        a_vma(A, A + 4 * PAGE_SIZE, name="test"),
        a_vma(A + 4 * PAGE_SIZE, A + 5 * PAGE_SIZE, 0x75, name=""),
        a_vma(A + 8 * PAGE_SIZE, A + 9 * PAGE_SIZE, 0x70),
        a_vma(A + 16 * PAGE_SIZE, A + 18 * PAGE_SIZE, 0xFB, 2, FakeShmem()),
        a_vma(A + 18 * PAGE_SIZE, A + 19 * PAGE_SIZE, 0xFB, 4, FakeShmem(), name="shared"),
        a_vma(0x7FFFFFFDE000, 0x7FFFFFFFF000, 0x173),
    ], brk=0x10001234)  # fmt: skip
    p.mm.start_stack = 0x7FFFFFFF0000
    assert maps.process_maps(p) == (
        "10000000-10002000 rw-p 00000000 00:00 0                                  [heap]\n"
        "7f0000000000-7f0000004000 rw-p 00000000 00:00 0                          [anon:test]\n"
        "7f0000004000-7f0000005000 r-xp 00000000 00:00 0                          [anon:]\n"
        "7f0000008000-7f0000009000 ---p 00000000 00:00 0 \n"
        "7f0000010000-7f0000012000 rw-s 00002000 00:01 7                          "
        "/dev/zero (deleted)\n"
        "7f0000012000-7f0000013000 rw-s 00004000 00:01 7                          "
        "[anon_shmem:shared]\n"
        "7ffffffde000-7ffffffff000 rw-p 00000000 00:00 0                          [stack]\n"
    )


def test_no_vma():
    p = FakeProcess([])
    assert maps.process_maps(p) == smaps.process_smaps(p) == numa_maps.process_numa_maps(p) == ""
    head = "00000000-00000000 ---p 00000000 00:00 0                                  [rollup]\n"
    rollup = smaps.process_rollup(p)
    assert rollup.startswith(head) and "Rss:                   0 kB\n" in rollup


@pytest.mark.conformance("PF-06")
def test_pss_is_shared_out():
    pages = [A + i * PAGE_SIZE for i in range(250)]
    p = FakeProcess([a_vma(A, A + 256 * PAGE_SIZE), a_vma(2 * A, 2 * A + PAGE_SIZE)],
                    FakeCore([*pages, 2 * A], sharers=2))
    first, second = smaps.parse_smaps(smaps.process_smaps(p))
    assert tuple(first.kb) == smaps.SMAPS_FIELDS
    assert first.kb["Size"] == 1024 and first.kb["Rss"] == 1000 and first.kb["Pss"] == 500
    assert first.kb["Shared_Dirty"] == 1000 and first.kb["Private_Dirty"] == 0
    assert first.flags == "rd wr mr mw me ac sd".split() and first.thp_eligible == 0
    assert second.kb["Pss"] == 2
    (both,) = smaps.parse_smaps(smaps.process_rollup(p))
    assert both.kb["Rss"] == 1004 and both.kb["Pss"] == both.kb["Pss_Anon"] == 502
    assert (both.area.start, both.area.end) == (A, 2 * A + PAGE_SIZE)
    assert both.kb["Pss_Shmem"] == 0


def test_smaps_is_printed_as_the_kernels():
    p = FakeProcess([a_vma(A, A + PAGE_SIZE)], FakeCore([A]))
    assert smaps.process_smaps(p).splitlines()[1:5] == [
        "Size:                  4 kB", "KernelPageSize:        4 kB",
        "MMUPageSize:           4 kB", "Rss:                   4 kB",
    ]  # fmt: skip
    assert smaps.process_smaps(p).endswith(
        "Locked:                0 kB\nTHPeligible:           0\nVmFlags: rd wr mr mw me ac sd \n"
    )


@pytest.mark.parametrize(
    ("enabled", "order_2m", "order_64k", "word", "start", "pages", "eligible"),
    [
        ("always", "inherit", "never", 0x73, 0, 512, 1),
        ("always", "inherit", "never", 0x73, 1, 512, 0),     # holds no aligned 2 MiB
        ("always", "never", "never", 0x73, 0, 512, 0),
        ("madvise", "inherit", "never", 0x73, 0, 512, 0),
        ("madvise", "inherit", "never", 0x20000073, 0, 512, 1),
        ("never", "inherit", "always", 0x73, 0, 16, 1),
        ("never", "inherit", "always", 0x73, 1, 16, 0),
        ("never", "inherit", "always", 0x40000073, 0, 16, 0),
        ("never", "inherit", "madvise", 0x20000073, 16, 40, 1),
    ],
)
def test_thp_eligible(enabled, order_2m, order_64k, word, start, pages, eligible):
    thp = ThpSettings(None)
    thp.enabled = enabled
    thp.orders[9], thp.orders[4] = order_2m, order_64k
    start = A + start * PAGE_SIZE
    p = FakeProcess([a_vma(start, start + pages * PAGE_SIZE, word)],
                    machine=FakeMachine(thp))
    assert smaps.parse_smaps(smaps.process_smaps(p))[0].thp_eligible == eligible
    p.mm.thp_disabled = 1
    assert smaps.parse_smaps(smaps.process_smaps(p))[0].thp_eligible == 0


def test_numa_maps():
    p = FakeProcess(
        [a_vma(A, A + 8 * PAGE_SIZE, policy="interleave:0-1"),
         a_vma(2 * A, 2 * A + PAGE_SIZE, 0xFB, 0, FakeShmem())],
        FakeCore([A, A + PAGE_SIZE, A + 5 * PAGE_SIZE], sharers=2),
    )
    first, second = numa_maps.process_numa_maps(p).splitlines()
    assert first == (
        "7f0000000000 interleave:0-1 anon=3 dirty=3 mapmax=2 N0=2 N2=1 kernelpagesize_kB=4"
    )
    assert second == "fe0000000000 default file=/dev/zero\\040(deleted)"
    assert sum(numa_maps.parse_numa_maps(first)[0].nodes.values()) == 3


def test_status():
    p = FakeProcess([], name="a\nlong name of nineteen")
    lines = parts(status.process_status(p))
    assert lines["Name"] == "\ta\\nlong name of "
    kb = {name: int(value.split()[0]) for name, value in lines.items()
          if value.endswith(" kB")}
    assert kb["VmRSS"] == kb["RssAnon"] + kb["RssFile"] + kb["RssShmem"] == 43 * 4
    assert kb["VmSwap"] == 20 and kb["VmLck"] == 16 and kb["VmData"] == 200
    assert kb["VmPeak"] == 400 and kb["VmHWM"] == 240       # the size of now is above its mark
    assert lines["CapEff"] == f"\t{1 << 21 | 1 << 14:016x}"
    assert lines["Cpus_allowed"] == "\t3" and lines["Mems_allowed_list"] == "\t0"
    assert len(lines["Mems_allowed"]) == 1 + 32 * 9 - 1
    assert "VmLck:\t      16 kB\n" in status.process_status(p)


def test_names_are_cut_and_escaped():
    assert status.comm("0123456789abcdefgh") == "0123456789abcde"
    assert status.comm("é" * 10) == "é" * 7
    assert status.escape_comm("a\n\\b") == "a\\n\\\\b"


def test_stat():
    parent = FakeProcess([])
    p = FakeProcess([], pid=6, parent=parent, name="child)")
    fields = stat.parse_stat(stat.process_stat(p))
    assert fields["ppid"] == 5 and fields["comm"] == "child)"
    assert (fields["minflt"], fields["majflt"], fields["rss"]) == (17, 2, 43)
    assert fields["vsize"] == 100 * PAGE_SIZE and fields["start_brk"] == 0x10000000
    assert stat.process_statm(p) == "100 43 3 0 0 83 0\n"


@pytest.mark.conformance("PF-14")
def test_pagemap():
    p = FakeProcess([a_vma(A, A + 4 * PAGE_SIZE)], FakeCore([A + PAGE_SIZE]))
    words = pagemap.process_pagemap(p, A + 5, 3)
    assert [word >> 55 for word in words] == [0, 0b1_0000_0011, 0]
    assert words[1] & pagemap.PM_PFRAME == 1
    assert pagemap.read_pagemap(p, (A >> 12) * 8 + 8, 8) == words[1].to_bytes(8, "little")
    p.mm.capabilities = frozenset()
    assert pagemap.process_pagemap(p, A, 3) == [0, 0b1_0000_0011 << 55, 0]
    end = pagemap.TASK_SIZE
    assert len(pagemap.process_pagemap(p, end - PAGE_SIZE, 7)) == 1
    assert pagemap.process_pagemap(p, end, 7) == []
    assert pagemap.read_pagemap(p, 1 << 60, 8) == b""
    for offset, count in ((4, 8), (8, 4), (-8, 8)):
        with pytest.raises(OSError) as caught:
            pagemap.read_pagemap(p, offset, count)
        assert caught.value.errno == errno.EINVAL


def test_clear_refs():
    p = FakeProcess([a_vma(A, A + PAGE_SIZE), a_vma(2 * A, 3 * A, 0x73)])
    for text in ("1", "2\n", " 3 ", "+4", "5"):
        clear_refs.write_clear_refs(p, text)
    clean = [a_vma(A, A + PAGE_SIZE, 0x100073), a_vma(2 * A, 3 * A, 0x73)]
    assert p.core.cleared == [
        "referenced", "anon", "file", ("soft_dirty", clean), "hiwater",
    ]  # fmt: skip
    for text in ("0", "6", "", "x", "-1", "1 2", "0x1", "1.0", "\u0661"):
        with pytest.raises(OSError) as caught:
            clear_refs.write_clear_refs(p, text)
        assert caught.value.errno == errno.EINVAL
    assert len(p.core.cleared) == 5


def test_tree():
    p = FakeProcess([a_vma(A, A + PAGE_SIZE)])
    machine = p.machine
    machine.sysctl = {}
    tree = ProcFS(machine)
    assert tree["/proc/5/maps"] == maps.process_maps(p)
    assert "/proc/5/clear_refs" in tree and "/proc/6/maps" not in tree
    for path in ("/proc/05/maps", "/proc/5/mem", "/proc/6/maps", "/proc/5/maps/"):
        with pytest.raises(KeyError):
            tree[path]
    tree["/proc/5/clear_refs"] = "1"
    assert p.core.cleared == ["referenced"]
    with pytest.raises(PermissionError):
        tree["/proc/5/clear_refs"]
    with pytest.raises(PermissionError):
        tree["/proc/5/status"] = "1"
    files = {path for path, _ in tree._process_files()}
    assert files == {f"/proc/5/{name}" for name in (
        "clear_refs", "maps", "numa_maps", "smaps", "smaps_rollup", "stat", "statm", "status")}
