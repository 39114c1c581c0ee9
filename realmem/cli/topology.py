"""``realmem topology``: the machine underneath, for people and for programs."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from realmem.host.survey import Host


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print JSON (realmem.schema.TOPOLOGY).")
def topology(as_json: bool) -> None:
    """Show this machine's nodes, memory, limits, and what realmem will use."""
    from realmem.host.survey import survey

    host = survey()
    if as_json:
        click.echo(json.dumps(host.to_dict(), indent=2))
        return
    from rich.console import Console

    console = Console(highlight=False, soft_wrap=False)
    for show in (_machine, _nodes, _use, _facts, _capabilities):
        show(console, host)


def _machine(console: Console, host: Host) -> None:
    from realmem.host.sysfs import format_list

    words = [
        host.cpu_model or host.architecture,
        f"Linux {host.kernel}",
        f"{len(host.cpus_present)} CPUs, {format_list(host.cpuset.affinity_cpus)} for us",
    ]
    if host.cpuset.cpu_quota is not None:
        words.append(f"time of {host.cpuset.cpu_quota:g} of them")
    if host.container:
        words.append(f"in a container ({host.container})")
    console.print(", ".join(words), markup=False)


def _nodes(console: Console, host: Host) -> None:
    from realmem.host.sysfs import format_list

    table = _table("Host nodes")
    for name in ("node", "CPUs", "memory", "free", "distances", "what"):
        table.add_column(name, justify="right" if name in ("node", "memory", "free") else "left")
    for node in host.nodes:
        row = host.distances.get(node.id, {})
        table.add_row(
            str(node.id),
            format_list(node.cpus) or "-",
            _size(node.memory_bytes),
            _size(node.free_bytes),
            " ".join(str(row.get(other.id, "-")) for other in host.nodes),
            node.kind + ("" if node.allowed else ", not in our cpuset"),
        )
    _print(console, table)
    if host.hmat:
        table = _table("What the firmware says of memory (HMAT)")
        for name in ("node", "from", "read ns", "write ns", "read MB/s", "write MB/s"):
            table.add_column(name, justify="right")
        for hmat in host.hmat:
            if hmat.access == 0:
                figures = (hmat.read_latency_ns, hmat.write_latency_ns,
                           hmat.read_bandwidth_mbs, hmat.write_bandwidth_mbs)
                table.add_row(str(hmat.node), format_list(hmat.initiators) or "-",
                              *("-" if figure is None else str(figure) for figure in figures))
        _print(console, table)


def _use(console: Console, host: Host) -> None:
    from realmem.host.sysfs import format_list

    table = _table("What realmem.Machine() uses")
    for name in ("simulated node", "host node", "CPUs"):
        table.add_column(name)
    for node in host.simulated_nodes:
        table.add_row(str(node.id), str(node.host_node), format_list(node.cpus) or "-")
    _print(console, table)
    if host.emulated:
        console.print("One node here: the others of a larger machine share it, stamped emulated.")
    if host.unverified:
        console.print("Memory cannot be bound or located here: results are stamped unverified.")


def _facts(console: Console, host: Host) -> None:
    table = _table(None, header=False)
    table.add_column(no_wrap=True)
    table.add_column()
    table.add_row(
        "memory", f"{_size(host.memory_bytes)}, {_size(host.available_bytes)} available"
    )
    table.add_row("caches", _caches(host))
    table.add_row("huge pages", _huge_pages(host))
    table.add_row(
        "THP", f"{host.thp.enabled or 'none'}; shared memory: {host.thp.shmem_enabled or 'none'}"
    )
    if not host.hmat:
        table.add_row("HMAT", "no figures from the firmware")
    if len(host.memory_tiers) > 1:
        tiers = (f"{n}: nodes {','.join(map(str, v))}" for n, v in host.memory_tiers.items())
        table.add_row("memory tiers", "; ".join(tiers))
    table.add_row("cgroup limit", _cgroup(host))
    table.add_row("host mappings", f"{host.sysctls['vm.max_map_count'] or '?'} (vm.max_map_count)")
    _print(console, table)


def _caches(host: Host) -> str:
    words = []
    for cache in host.caches:
        kind = "" if cache.type == "Unified" else cache.type[0].lower()
        shared = f" for {cache.shared_by} CPUs" if cache.shared_by > 1 else ""
        words.append(f"L{cache.level}{kind} {_size(cache.size_bytes)} x {cache.count}{shared}")
    return ", ".join(words) or "not told"


def _huge_pages(host: Host) -> str:
    words = [
        f"{_size(pages.size_bytes)}: {pages.free} free of {pages.total}"
        for pages in host.huge_pages
    ]
    words += [
        f"node {pages.node} {_size(pages.size_bytes)}: {pages.free} of {pages.total}"
        for pages in host.node_huge_pages
        if pages.total and len(host.nodes) > 1
    ]
    return "; ".join(words) or "none"


def _cgroup(host: Host) -> str:
    if not host.cgroup_limits:
        return "none"
    limit = host.cgroup_limits[0]
    return (
        f"{_size(limit.available_bytes)} left of {_size(limit.limit_bytes)} "
        f"({limit.directory}/{limit.file})"
    )


def _capabilities(console: Console, host: Host) -> None:
    table = _table("What this host permits")
    for name in ("call", "", "for"):
        table.add_column(name)
    for capability in host.capabilities:
        answer = capability.detail or "yes"
        if not capability.permitted:
            answer = f"no: {capability.reason}"
        table.add_row(capability.name, answer, capability.needed_for)
    _print(console, table)


def _table(title: str | None, *, header: bool = True) -> Table:
    from rich.table import Table

    return Table(title=title, title_justify="left", box=None, pad_edge=False, show_header=header,
                 title_style="bold", header_style="dim")


def _print(console: Console, table: Table) -> None:
    console.print()
    console.print(table, markup=False)


def _size(nbytes: int) -> str:
    """Write bytes in the unit that leaves at most four digits, as people read them."""
    if not nbytes:
        return "0"
    for unit, shift in (("T", 40), ("G", 30), ("M", 20), ("K", 10)):
        if nbytes >= 1 << shift:
            value = nbytes / (1 << shift)
            digits = 0 if value >= 100 or value == int(value) else 1
            return f"{value:.{digits}f}{unit}"
    return f"{nbytes}B"
