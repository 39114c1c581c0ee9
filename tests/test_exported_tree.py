"""Programs that people have read an exported tree, put over /proc and /sys, unmodified."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

import realmem as rm
from realmem.procfs.meminfo import parse_meminfo


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    """A tree of a machine in use: (folder, what each file says)."""
    folder = tmp_path_factory.mktemp("tree")
    with rm.Machine(nodes=2, memory="64M") as machine:
        cache = machine.kmem_cache_create("realmem_test", 700, flags=rm.SLAB.NO_MERGE)
        for i in range(500):
            cache.alloc(node=i % 2)
        machine.alloc_pages_bulk(rm.GFP_KERNEL, 1000)
        process = machine.spawn()
        at = process.mmap(None, 1 << 20, rm.PROT_READ | rm.PROT_WRITE,
                          rm.MAP_PRIVATE | rm.MAP_ANONYMOUS)
        process.touch(at, 1 << 20, write=True)
        machine.procfs.export(folder)
        texts = {str(path.relative_to(folder)): path.read_text()
                 for path in folder.rglob("*") if path.is_file()}
    return folder, texts


def run_over(folder: Path, *argv: str) -> str:
    """Run a program where the tree's files stand over the host's own."""
    if shutil.which(argv[0]) is None:
        pytest.skip(f"{argv[0]} is not installed")
    if os.geteuid() != 0:
        pytest.skip("mounting over /proc needs root")
    mounts = [
        f"mount --bind {shlex.quote(str(path))} /{path.relative_to(folder)}"
        for path in sorted((folder / "proc").iterdir())
        if path.is_file() and Path("/proc", path.name).exists()
    ]
    nodes = "sys/devices/system/node"
    mounts.append(f"mount --bind {shlex.quote(str(folder / nodes))} /{nodes}")
    script = " && ".join([*mounts, shlex.join(argv)])
    done = subprocess.run(
        ["unshare", "--mount", "sh", "-c", script], capture_output=True, text=True,
        env={**os.environ, "LC_ALL": "C", "COLUMNS": "120"},
    )
    if "permission denied" in done.stderr.lower() or "not permitted" in done.stderr:
        pytest.skip(f"this host does not let us mount: {done.stderr.strip()[-100:]}")
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_free(tree):
    folder, texts = tree
    info = parse_meminfo(texts["proc/meminfo"])
    memory = run_over(folder, "free", "-k").splitlines()[1].split()
    assert memory[0] == "Mem:" and int(memory[1]) == info["MemTotal"]
    assert int(memory[3]) == info["MemFree"] and int(memory[6]) == info["MemAvailable"]


def test_vmstat_s(tree):
    folder, texts = tree
    info = parse_meminfo(texts["proc/meminfo"])
    text = run_over(folder, "vmstat", "-s")
    assert re.search(rf"^ +{info['MemTotal']} K total memory$", text, re.M)
    assert re.search(rf"^ +{info['MemFree']} K free memory$", text, re.M)
    assert re.search(rf"^ +{info['Active']} K active memory$", text, re.M)


def test_vmstat_m(tree):
    folder, texts = tree
    line = re.search(r"^realmem_test +(\d+) +(\d+) +(\d+) +(\d+)", texts["proc/slabinfo"], re.M)
    shown = re.search(r"^realmem_test +(\d+) +(\d+) +(\d+) +(\d+)$",
                      run_over(folder, "vmstat", "-m"), re.M)
    assert shown is not None and shown.groups() == line.groups()


def test_slabtop(tree):
    folder, texts = tree
    text = run_over(folder, "slabtop", "-o")
    line = re.search(r"^realmem_test +(\d+) +(\d+) +(\d+) +(\d+) +(\d+)", texts["proc/slabinfo"],
                     re.M)
    active, total, size, per_slab, _ = map(int, line.groups())
    shown = re.search(r"^ *(\d+) +(\d+) +(\d+)% +([\d.]+)K +(\d+) +(\d+) +(\d+)K realmem_test",
                      text, re.M)
    assert shown is not None, text
    assert [int(shown[i]) for i in (1, 2, 6)] == [total, active, per_slab]
    assert float(shown[4]) == pytest.approx(size / 1024, abs=0.01)
    caches = re.search(r"Active / Total Caches \(% used\) +: (\d+) / (\d+)", text)
    assert int(caches[2]) == texts["proc/slabinfo"].count("\n") - 2


def test_numastat_m(tree):
    folder, texts = tree
    text = run_over(folder, "numastat", "-m")
    for name in ("MemTotal", "MemFree", "AnonPages", "PageTables", "Slab", "SUnreclaim"):
        by_node = [parse_meminfo(texts[f"sys/devices/system/node/node{nid}/meminfo"])[name] / 1024
                   for nid in range(2)]
        shown = re.search(rf"^{name} +([\d.]+) +([\d.]+) +([\d.]+)$", text, re.M)
        assert shown is not None, name
        assert [float(one) for one in shown.groups()] == pytest.approx(
            [*by_node, sum(by_node)], abs=0.011), name


def test_numastat(tree):
    folder, texts = tree
    text = run_over(folder, "numastat")
    for name in ("numa_hit", "numa_miss", "local_node", "other_node"):
        by_node = [re.search(rf"^{name} (\d+)$",
                             texts[f"sys/devices/system/node/node{nid}/numastat"], re.M)[1]
                   for nid in range(2)]
        assert re.search(rf"^{name} +{by_node[0]} +{by_node[1]}$", text, re.M), name
