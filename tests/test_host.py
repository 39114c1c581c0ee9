"""What is read of the host: against this one, and on trees of hosts that are not at hand."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import fake_host
import pytest
from hypothesis import given
from hypothesis import strategies as st

import realmem as rm
from realmem import host, preflight, schema
from realmem.host import hardware, libnuma, limits, sysfs, topology
from realmem.host.capabilities import capabilities
from realmem.host.survey import survey

GIB = 1 << 30


@pytest.fixture
def big(tmp_path: Path) -> str:
    """Two sockets, a CPU-only node, a memory-only node, gaps between numbers."""
    fake_host.two_sockets_and_cxl(tmp_path)
    return str(tmp_path)


@given(st.sets(st.integers(0, 300)))
def test_lists_go_both_ways(numbers: set[int]) -> None:
    text = sysfs.format_list(numbers)
    assert set(sysfs.parse_list(text)) == numbers
    assert ",," not in text


@pytest.mark.parametrize("text", [None, "", "\n", "(null)"])
def test_empty_lists(text: str | None) -> None:
    assert sysfs.parse_list(text) == ()


def test_missing_files_are_none(tmp_path: Path) -> None:
    assert sysfs.read_text(tmp_path / "no") is None
    assert sysfs.read_int(tmp_path / "no") is None
    (tmp_path / "max").write_text("max\n")
    assert sysfs.read_int(tmp_path / "max") is None


def test_nodes_with_gaps(big: str) -> None:
    kinds = {node.id: node.kind for node in topology.nodes(big)}
    assert kinds == {0: "CPUs and memory", 1: "CPUs and memory", 3: "CPUs only", 6: "memory only"}
    assert [node.id for node in topology.usable_nodes(big)] == [0, 1, 6]
    assert topology.nodes(big)[3].memory_bytes == 128 * GIB
    assert topology.present_cpus(big) == tuple(range(12))


def test_distances_with_gaps(big: str) -> None:
    """The third column is node 3, the fourth node 6: a column is not a node number."""
    assert topology.distance(0, 3, big) == 31
    assert topology.distance(6, 0, big) == 17
    assert topology.distance(5, 5, big) == 10  # unknown: what Linux assumes
    assert topology.distance(0, 5, big) == 20


def test_cpus_of_nodes_without_memory_go_to_the_nearest(big: str) -> None:
    assert topology.cpus_of(0, big) == (0, 1, 2, 3)
    assert topology.cpus_of(1, big) == (4, 5, 6, 7, 8, 9)
    assert topology.cpus_of(3, big) == ()
    assert topology.cpus_of(6, big) == ()


def test_cpus_of_a_forbidden_node_move_too(big: str) -> None:
    status = Path(big) / "proc/self/status"
    status.write_text(status.read_text().replace("0-1,6", "1,6"))
    assert [node.id for node in topology.usable_nodes(big)] == [1, 6]
    assert topology.cpus_of(6, big) == (0, 1, 2, 3)  # 17 against 21
    assert topology.cpus_of(1, big) == (4, 5, 6, 7, 8, 9)


def test_a_kernel_without_numa_is_one_node(tmp_path: Path) -> None:
    fake_host.write(tmp_path, {"proc/meminfo": "MemTotal: 2048 kB\nMemFree: 1024 kB",
                               "sys/devices/system/cpu/online": "0-2"})
    root = str(tmp_path)
    assert topology.nodes(root) == [topology.HostNode(0, (0, 1, 2), 2 << 20, 1 << 20, True)]
    assert topology.cpus_of(0, root) == (0, 1, 2)
    assert topology.distance(0, 0, root) == 10


def test_this_host_agrees_with_libnuma() -> None:
    info = libnuma.load()
    assert len(host.nodes()) == info.get_num_configured_nodes()
    for node in host.nodes():
        assert list(node.cpus) == info.node_to_cpus(node.id)
        for other in host.nodes():
            assert host.distance(node.id, other.id) == info.numa_distance(node.id, other.id)
    assert len(host.present_cpus()) >= info.get_num_configured_cpus()


def test_every_cpu_belongs_to_exactly_one_usable_node() -> None:
    cpus = [cpu for node in host.usable_nodes() for cpu in host.cpus_of(node.id)]
    assert sorted(cpus) == sorted(cpu for node in host.nodes() for cpu in node.cpus)
    assert set(os.sched_getaffinity(0)) <= set(cpus)


def test_what_machines_need_loads_nothing_heavy(python: Any) -> None:
    done = python("""
import sys
from realmem import host
host.usable_nodes(), host.distance(0, 0), host.cpus_of(0), host.present_cpus()
print([name for name in ("numpy", "rich", "numa", "psutil", "click") if name in sys.modules])
""")
    assert done.stdout == "[]\n", done.stderr


# ---- limits ----

V1 = {"proc/self/cgroup": "4:memory:/jobs/one\n0::/",
      "proc/self/mountinfo": "30 25 0:1 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory"}


def cgroup_v1(name: str, limit: int, usage: int, cache: int = 0) -> dict[str, str]:
    base = f"sys/fs/cgroup/memory/{name}"
    return {f"{base}/memory.limit_in_bytes": str(limit),
            f"{base}/memory.usage_in_bytes": str(usage),
            f"{base}/memory.stat": f"inactive_file 1\ntotal_inactive_file {cache}"}


def test_tightest_cgroup_up_the_tree(tmp_path: Path) -> None:
    """The parent binds: it has less left, though its limit is larger."""
    fake_host.write(tmp_path, {**V1, **cgroup_v1("", 0x7FFFFFFFFFFFF000, 0),
                               **cgroup_v1("jobs", 8 * GIB, 7 * GIB),
                               **cgroup_v1("jobs/one", 4 * GIB, 1 * GIB)})
    found = limits.cgroup_memory_limits(str(tmp_path))
    assert [limit.available_bytes for limit in found] == [1 * GIB, 3 * GIB]
    assert found[0].directory.endswith("memory/jobs")


def test_file_cache_counts_as_available(tmp_path: Path) -> None:
    fake_host.write(tmp_path, {**V1, **cgroup_v1("jobs/one", 4 * GIB, 4 * GIB, cache=3 * GIB)})
    assert limits.cgroup_memory_limits(str(tmp_path))[0].available_bytes == 3 * GIB


def test_cgroup_v2_in_a_container_with_a_part_of_the_tree_mounted(tmp_path: Path) -> None:
    base = "sys/fs/cgroup/inner"
    fake_host.write(tmp_path, {
        "proc/self/cgroup": "0::/docker/abc/inner",
        "proc/self/mountinfo": "30 25 0:1 /docker/abc /sys/fs/cgroup rw - cgroup2 cgroup2 rw",
        f"{base}/memory.max": "max", f"{base}/memory.high": str(2 * GIB),
        f"{base}/memory.current": str(GIB), f"{base}/memory.stat": f"active_file {GIB // 2}",
        "sys/fs/cgroup/memory.max": str(GIB * 5), "sys/fs/cgroup/memory.current": str(2 * GIB)})
    found = limits.cgroup_memory_limits(str(tmp_path))
    assert [(limit.file, limit.available_bytes) for limit in found] == [
        ("memory.high", 3 * GIB // 2), ("memory.max", 3 * GIB)]


def test_cgroup_path_from_outside_the_namespace(tmp_path: Path) -> None:
    """/proc/self/cgroup may point out of what is mounted; then the mount itself is asked."""
    fake_host.write(tmp_path, {
        "proc/self/cgroup": "0::/../../other", "sys/fs/cgroup/memory.max": str(GIB),
        "proc/self/mountinfo": "30 25 0:1 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw"})
    assert [limit.limit_bytes for limit in limits.cgroup_memory_limits(str(tmp_path))] == [GIB]


def test_no_cgroups_at_all(tmp_path: Path) -> None:
    assert limits.cgroup_memory_limits(str(tmp_path)) == []


@pytest.mark.parametrize(("top", "sized", "expected"), [
    ("always [never]", None, "never"),
    ("always [advise] never", "[inherit] always never", "advise"),
    ("always [advise] never", "inherit always [never]", "never"),
    ("[deny] always", "inherit [always] never", "deny"),
    (None, None, None),
])
def test_shmem_thp(tmp_path: Path, top: str | None, sized: str | None,
                   expected: str | None) -> None:
    base = "sys/kernel/mm/transparent_hugepage"
    files = {f"{base}/shmem_enabled": top, f"{base}/hugepages-2048kB/shmem_enabled": sized}
    fake_host.write(tmp_path, {name: text for name, text in files.items() if text is not None})
    assert limits.shmem_thp(str(tmp_path))[0] == expected


# ---- preflight on the big host ----

def demand(nbytes: int, node: int | None) -> preflight.Demand:
    return preflight.Demand(nbytes, 0, node)


@pytest.mark.parametrize(("demands", "message"), [
    ([demand(GIB, 3)], "node 3 .*cpuset"),
    ([demand(GIB, 2)], "node 2 does not exist or has no memory"),
    ([demand(30 * GIB, 0), demand(10 * GIB, 0)], "40G of memory wanted on host node 0, 36G free"),
    ([demand(40 * GIB, 1)], "host node 1"),
    ([demand(30 * GIB, 0), demand(30 * GIB, 1), demand(62 * GIB, 6)], "122G .* 120G available"),
])
def test_preflight_refuses(big: str, demands: list[preflight.Demand], message: str) -> None:
    with pytest.raises(rm.HostError, match=message):
        preflight.check(demands, 0, backing="4K", mlock=False, root=big)


def test_preflight_lets_pass(big: str) -> None:
    demands = [demand(30 * GIB, 0), demand(30 * GIB, 1), demand(50 * GIB, 6)]
    preflight.check(demands, 0, backing="4K", mlock=False, root=big)
    preflight.check(demands, 0, backing="thp", mlock=False, root=big)


def test_ballooned_memory_may_turn_up_on_any_node(big: str) -> None:
    meminfo = Path(big) / "proc/meminfo"
    meminfo.write_text(meminfo.read_text().replace(str(120 << 20), str(180 << 20)))
    preflight.check([demand(40 * GIB, 1)], 0, backing="4K", mlock=False, root=big)


def test_preflight_of_huge_pages(big: str) -> None:
    check = preflight.check
    check([demand(14 << 20, 0)], 0, backing="hugetlb-2M", mlock=False, root=big)
    with pytest.raises(rm.HostError, match=r"write 11 to /sys/kernel/mm/hugepages/.*2048kB"):
        check([demand(16 << 20, 0)], 0, backing="hugetlb-2M", mlock=False, root=big)
    with pytest.raises(rm.HostError, match=r"write 1 to /sys/.*/node1/hugepages/.*2048kB"):
        check([demand(2 << 20, 1)], 0, backing="hugetlb-2M", mlock=False, root=big)
    with pytest.raises(rm.HostError, match="no huge pages of 1G"):
        check([demand(GIB, 0)], 0, backing="hugetlb-1G", mlock=False, root=big)


# ---- the rest ----

def test_hardware(big: str) -> None:
    assert hardware.caches(big) == [hardware.Cache(1, "Data", 48 << 10, 64, 12, 2, 2)]
    assert hardware.hmat(big) == [hardware.Hmat(6, 0, (0,), 310, 330, 22000, 19000)]
    assert hardware.memory_tiers(big) == {"memory_tier4": (0, 1), "memory_tier22": (6,)}
    assert hardware.cpu_model(big) == "Fake CPU 9000"


def test_survey_of_the_big_host(big: str) -> None:
    found = survey(big)
    assert [node.host_node for node in found.simulated_nodes] == [0, 1, 6]
    assert found.distances[1] == {0: 21, 1: 10, 3: 15, 6: 27}
    assert (found.emulated, found.seccomp, found.thp.shmem_enabled) == (False, True, "advise")
    assert [(p.node, p.free) for p in found.node_huge_pages] == [(0, 8), (1, 0)]
    conforms(json.loads(json.dumps(found.to_dict())), schema.TOPOLOGY)


def test_survey_of_this_host_follows_its_schema() -> None:
    found = survey()
    record = json.loads(json.dumps(found.to_dict()))
    conforms(record, schema.TOPOLOGY)
    assert record["kernel"] == os.uname().release
    assert record["cpuset"]["affinity_cpus"] == sorted(os.sched_getaffinity(0))


def conforms(value: Any, rule: dict[str, Any]) -> None:
    """Check a value against the part of JSON Schema that realmem.schema uses."""
    kinds: dict[str, tuple[type, ...]] = {
        "object": (dict,), "array": (list,), "string": (str,), "integer": (int,),
        "number": (int, float), "boolean": (bool,), "null": (type(None),)}
    if "anyOf" in rule:
        assert any(isinstance(value, kinds[each["type"]]) for each in rule["anyOf"]), value
        return
    assert isinstance(value, kinds[rule["type"]]), (value, rule)
    assert rule["type"] != "integer" or not isinstance(value, bool)
    if rule["type"] == "array":
        for each in value:
            conforms(each, rule["items"])
    elif rule["type"] == "object":
        for name in rule.get("required", ()):
            conforms(value[name], rule["properties"][name])
        for each in value.values() if "additionalProperties" in rule else ():
            conforms(each, rule["additionalProperties"])


def test_a_wrong_record_does_not_conform() -> None:
    record = survey().to_dict()
    record = json.loads(json.dumps(record))
    record["nodes"][0]["memory_bytes"] = "much"
    with pytest.raises(AssertionError):
        conforms(record, schema.TOPOLOGY)


def test_refused_calls_show_as_refused(refusing: Any) -> None:
    done = refusing([sys.executable, "-c", """
from realmem.host.capabilities import capabilities
print({each.name: each.reason for each in capabilities() if not each.permitted})
"""], deny="mbind,move_pages,get_mempolicy,mlock,userfaultfd,memfd_create", errno="EACCES")
    refused = eval(done.stdout)
    assert set(refused) >= {"mbind", "move_pages", "get_mempolicy", "mlock", "memfd_create",
                            "hugetlb", "userfaultfd"}, done.stderr
    assert set(refused.values()) == {"EACCES"}


def test_capabilities_change_nothing() -> None:
    maps = Path("/proc/self/maps")
    fds = Path("/proc/self/fd")
    capabilities()
    before = maps.read_text().count("\n"), len(list(fds.iterdir()))
    capabilities()
    assert (maps.read_text().count("\n"), len(list(fds.iterdir()))) == before


def test_missing_libnuma_names_its_package(python: Any) -> None:
    done = python("""
import ctypes.util
ctypes.util.find_library = lambda name: None
import realmem
from realmem.host import libnuma
try:
    libnuma.load()
except realmem.HostError as error:
    print(error)
""")
    assert "libnuma1" in done.stdout, done.stderr
