"""How much memory this process may still take: cgroups, nodes, cpuset, rlimits."""

from __future__ import annotations

import posixpath
import resource
from dataclasses import dataclass
from pathlib import Path

from realmem.host.sysfs import (
    parse_list,
    read_bytes_table,
    read_int,
    read_status,
    read_text,
)

CAP_IPC_LOCK = 14
_NO_LIMIT = 1 << 62  # cgroup v1 writes "no limit" as a page counter's largest value


@dataclass(frozen=True)
class CgroupLimit:
    """
    One memory limit on the way from this process's cgroup to the root.

    :ivar directory: of the cgroup, where it is mounted.
    :ivar file: that holds the limit.
    :ivar reclaimable_bytes: file cache that the kernel would drop before it refuses.
    """

    directory: str
    file: str
    limit_bytes: int
    usage_bytes: int
    reclaimable_bytes: int

    @property
    def available_bytes(self) -> int:
        """What can still be charged to this cgroup."""
        in_use = max(0, self.usage_bytes - self.reclaimable_bytes)
        return max(0, self.limit_bytes - in_use)


@dataclass(frozen=True)
class CgroupDirectory:
    """A cgroup that this process is in, and where the hierarchy is mounted."""

    version: int
    directory: Path
    mount: Path

    def up(self) -> list[Path]:
        """Give the directories from this cgroup up to the mount, as far as they exist."""
        found = []
        here = self.directory
        while True:
            if here.is_dir():
                found.append(here)
            if here == self.mount or self.mount not in here.parents:
                return found
            here = here.parent


def cgroup_directories(root: str = "/", controller: str = "memory") -> list[CgroupDirectory]:
    """
    Find this process's cgroups for a controller: v1, v2 or, on a hybrid system, both.

    The path in ``/proc/self/cgroup`` counts from the hierarchy's root, while a container may
    have only a part of it mounted: mountinfo's root field says which part.
    """
    paths: dict[int, str] = {}
    for line in (read_text(Path(root) / "proc/self/cgroup") or "").splitlines():
        number, _, rest = line.partition(":")
        names, _, path = rest.partition(":")
        if number == "0" and not names:
            paths[2] = path
        elif controller in names.split(","):
            paths[1] = path
    found = {}
    for line in (read_text(Path(root) / "proc/self/mountinfo") or "").splitlines():
        head, _, tail = line.partition(" - ")
        fields, kind = head.split(), tail.split()
        if len(fields) < 5 or len(kind) < 3:
            continue
        if kind[0] == "cgroup2":
            version = 2
        elif kind[0] == "cgroup" and controller in kind[2].split(","):
            version = 1
        else:
            continue
        if version in paths and version not in found:
            mount = Path(root) / fields[4].lstrip("/")
            inner = _below(paths[version], fields[3])
            found[version] = CgroupDirectory(version, mount / inner, mount)
    return [found[version] for version in sorted(found)]


def _below(path: str, mount_root: str) -> str:
    """Give the part of a cgroup path that lies below what is mounted."""
    inner = posixpath.relpath(path, mount_root if mount_root.startswith("/") else "/")
    return "" if inner == "." or inner.startswith("..") else inner


def cgroup_memory_limits(root: str = "/") -> list[CgroupLimit]:
    """Give every memory limit that binds this process, the tightest first."""
    limits = []
    for cgroup in cgroup_directories(root):
        for directory in cgroup.up():
            limits.extend(_limits_of(directory, cgroup.version))
    return sorted(limits, key=lambda limit: limit.available_bytes)


def _limits_of(directory: Path, version: int) -> list[CgroupLimit]:
    if version == 2:
        names, usage_name, prefix = ["memory.max", "memory.high"], "memory.current", ""
    else:
        names, usage_name, prefix = ["memory.limit_in_bytes"], "memory.usage_in_bytes", "total_"
    found = []
    for name in names:
        limit = read_int(directory / name)
        if limit is None or limit >= _NO_LIMIT:
            continue
        stat = read_bytes_table(directory / "memory.stat")
        cache = stat.get(prefix + "inactive_file", 0) + stat.get(prefix + "active_file", 0)
        usage = read_int(directory / usage_name) or 0
        found.append(CgroupLimit(str(directory), name, limit, usage, cache))
    return found


@dataclass(frozen=True)
class NodeMemory:
    """Memory of a host node: in all, free, and what reclaim could free without swapping."""

    total_bytes: int
    free_bytes: int
    reclaimable_bytes: int

    @property
    def available_bytes(self) -> int:
        """What the kernel could hand out before its out-of-memory killer runs."""
        return self.free_bytes + self.reclaimable_bytes


def node_memory(node: int, root: str = "/") -> NodeMemory | None:
    """Read a host node's meminfo; None where there is no such node (or no sysfs)."""
    table = read_bytes_table(Path(root) / f"sys/devices/system/node/node{node}/meminfo")
    if "MemTotal" not in table:
        return None
    cache = sum(table.get(name, 0) for name in ("Active(file)", "Inactive(file)", "SReclaimable"))
    return NodeMemory(table["MemTotal"], table.get("MemFree", 0), cache)


def available_memory(root: str = "/") -> int | None:
    """Give the whole host's MemAvailable in bytes."""
    return read_bytes_table(Path(root) / "proc/meminfo").get("MemAvailable")


def mems_allowed(root: str = "/") -> tuple[int, ...]:
    """Give the host nodes that the cpuset lets this process allocate from."""
    return parse_list(read_status(root, "Mems_allowed_list"))


def has_capability(number: int, root: str = "/") -> bool:
    """Tell whether this process has an effective capability, by its number."""
    effective = read_status(root, "CapEff")
    return effective is not None and bool(int(effective, 16) >> number & 1)


def address_space_left() -> tuple[int, int] | None:
    """Give RLIMIT_AS and what is left of it, in bytes; None where it is unlimited."""
    limit = resource.getrlimit(resource.RLIMIT_AS)[0]
    if limit == resource.RLIM_INFINITY:
        return None
    statm = read_text(Path("/proc/self/statm"))
    used = int(statm.split()[0]) * resource.getpagesize() if statm else 0
    return limit, max(0, limit - used)


def memlock_left(root: str = "/") -> tuple[int, int] | None:
    """Give RLIMIT_MEMLOCK and what is left of it; None where it does not bind."""
    limit = resource.getrlimit(resource.RLIMIT_MEMLOCK)[0]
    if limit == resource.RLIM_INFINITY or has_capability(CAP_IPC_LOCK, root):
        return None
    locked = (read_status(root, "VmLck") or "0").split()[0]
    return limit, max(0, limit - int(locked) * 1024)


@dataclass(frozen=True)
class HugePages:
    """Huge pages of one size: in the pool, free, and reserved by mappings already made."""

    size_bytes: int
    total: int
    free: int
    reserved: int
    surplus: int


def _hugepages_in(directory: Path) -> list[HugePages]:
    found = []
    for path in directory.glob("hugepages-*kB") if directory.is_dir() else ():
        size = path.name[len("hugepages-") : -len("kB")]
        if size.isdigit():
            total, free, reserved, surplus = (
                read_int(path / f"{name}_hugepages") or 0
                for name in ("nr", "free", "resv", "surplus")
            )
            found.append(HugePages(int(size) * 1024, total, free, reserved, surplus))
    return sorted(found, key=lambda pages: pages.size_bytes)


def huge_pages(root: str = "/", node: int | None = None) -> list[HugePages]:
    """Give the huge page pools, of the whole host or of one node, smallest size first."""
    where = f"devices/system/node/node{node}/hugepages" if node is not None else None
    return _hugepages_in(Path(root) / "sys" / (where or "kernel/mm/hugepages"))


def choice(text: str | None) -> str | None:
    """Give the bracketed word of a sysfs choice: ``"always [never]"`` is ``"never"``."""
    if text is None:
        return None
    for word in text.split():
        if word.startswith("[") and word.endswith("]"):
            return word[1:-1]
    return text or None


def shmem_thp(root: str = "/") -> tuple[str | None, str]:
    """
    Give the setting that decides on 2 MiB pages in shared memory, and the file it stands in.

    Since 6.10 each size has a file of its own, which usually says ``inherit``.
    """
    base = "sys/kernel/mm/transparent_hugepage"
    top, sized = f"{base}/shmem_enabled", f"{base}/hugepages-2048kB/shmem_enabled"
    setting = choice(read_text(Path(root) / sized))
    overall = choice(read_text(Path(root) / top))
    if setting in (None, "inherit") or overall in ("deny", "force"):
        return overall, "/" + top
    return setting, "/" + sized
