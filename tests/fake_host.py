"""Fake /proc and /sys trees of hosts that are not at hand."""

from __future__ import annotations

from pathlib import Path


def write(root: Path, files: dict[str, str]) -> None:
    """Write files below a root."""
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n")


def node_files(
    number: int, cpus: str, total_kib: int, distance: str, **more: int
) -> dict[str, str]:
    """Give a node's files in sysfs; `more` are further lines of its meminfo, in KiB."""
    lines = {"MemTotal": total_kib, "MemFree": total_kib // 2, **more}
    base = f"sys/devices/system/node/node{number}"
    return {
        f"{base}/cpulist": cpus,
        f"{base}/distance": distance,
        f"{base}/meminfo": "\n".join(
            f"Node {number} {name}:   {value} kB" for name, value in lines.items()),
    }


def two_sockets_and_cxl(root: Path) -> None:
    """
    Two sockets, a socket without memory, a memory-only CXL node; nodes 0, 1, 3, 6 of 0-7.

    Node 3 has CPUs only and lies next to node 1; node 6 is memory behind node 0.
    """
    gib = 1 << 20
    write(root, {
        "sys/devices/system/node/possible": "0-7",
        "sys/devices/system/node/online": "0-1,3,6",
        "sys/devices/system/node/has_memory": "0-1,6",
        **node_files(0, "0-3", 64 * gib, "10 21 31 17", **{
            "Active(file)": 2 * gib, "Inactive(file)": gib, "SReclaimable": gib}),
        **node_files(1, "4-7", 64 * gib, "21 10 15 27"),
        **node_files(3, "8-9", 0, "31 15 10 37"),
        **node_files(6, "", 128 * gib, "17 27 37 10"),
        "sys/devices/system/cpu/present": "0-11",
        "sys/devices/system/cpu/online": "0-9",
        "proc/meminfo": f"MemTotal:  {256 * gib} kB\nMemAvailable:   {120 * gib} kB",
        "proc/cpuinfo": "processor\t: 0\nmodel name\t: Fake CPU 9000",
        "proc/self/status": "CapEff:\t0000000000000000\nCpus_allowed_list:\t0-9\n"
                            "Mems_allowed_list:\t0-1,6\nSeccomp:\t2",
        "sys/devices/system/node/node6/access0/initiators/read_latency": "310",
        "sys/devices/system/node/node6/access0/initiators/write_latency": "330",
        "sys/devices/system/node/node6/access0/initiators/read_bandwidth": "22000",
        "sys/devices/system/node/node6/access0/initiators/write_bandwidth": "19000",
        "sys/devices/system/node/node6/access0/initiators/node0/x": "",
        "sys/devices/system/node/node0/access0/initiators/read_latency": "0",
        "sys/devices/virtual/memory_tiering/memory_tier4/nodelist": "0-1",
        "sys/devices/virtual/memory_tiering/memory_tier22/nodelist": "6",
        "sys/kernel/mm/transparent_hugepage/enabled": "always [madvise] never",
        "sys/kernel/mm/transparent_hugepage/shmem_enabled":
            "always within_size [advise] never deny force",
        **{f"{base}/hugepages-2048kB/{name}_hugepages": value
           for base, values in {
               "sys/kernel/mm/hugepages": {"nr": "10", "free": "8", "resv": "1", "surplus": "0"},
               "sys/devices/system/node/node0/hugepages": {"nr": "10", "free": "8"},
               "sys/devices/system/node/node1/hugepages": {"nr": "0", "free": "0"},
           }.items() for name, value in values.items()},
        "proc/sys/vm/max_map_count": "65530",
    })
    for cpu in range(4):
        write(root, {
            f"sys/devices/system/cpu/cpu{cpu}/cache/index0/{name}": value
            for name, value in {"level": "1", "type": "Data", "size": "48K",
                                "coherency_line_size": "64", "ways_of_associativity": "12",
                                "shared_cpu_list": f"{cpu // 2 * 2}-{cpu // 2 * 2 + 1}"}.items()})
