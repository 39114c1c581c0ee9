"""
``/proc/PID/status``: identity, sizes and rights, a line each.

Compare fs/proc/array.c:proc_pid_status(), fs/proc/task_mmu.c:task_mem().
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from realmem.layout import PAGE_SHIFT
from realmem.procfs.masks import format_list, format_mask

COMM_BYTES = 15             # what task_struct's comm holds besides its end
MAX_NODES = 1024            # CONFIG_NODES_SHIFT of 10
CAPABILITIES = tuple(
    """
    CHOWN DAC_OVERRIDE DAC_READ_SEARCH FOWNER FSETID KILL SETGID SETUID SETPCAP LINUX_IMMUTABLE
    NET_BIND_SERVICE NET_BROADCAST NET_ADMIN NET_RAW IPC_LOCK IPC_OWNER SYS_MODULE SYS_RAWIO
    SYS_CHROOT SYS_PTRACE SYS_PACCT SYS_ADMIN SYS_BOOT SYS_NICE SYS_RESOURCE SYS_TIME
    SYS_TTY_CONFIG MKNOD LEASE AUDIT_WRITE AUDIT_CONTROL SETFCAP MAC_OVERRIDE MAC_ADMIN SYSLOG
    WAKE_ALARM BLOCK_SUSPEND AUDIT_READ PERFMON BPF CHECKPOINT_RESTORE
    """.split()
)
"""Linux's capabilities in the order of their numbers, without CAP_."""


@dataclass
class MemoryLines:
    """The lines on memory, in kB."""

    peak: int = 0
    size: int = 0
    locked: int = 0
    pinned: int = 0
    hwm: int = 0
    rss: int = 0
    rss_anon: int = 0
    rss_file: int = 0
    rss_shmem: int = 0
    data: int = 0
    stack: int = 0
    exe: int = 0
    lib: int = 0
    pte: int = 0
    swap: int = 0
    hugetlb: int = 0


@dataclass
class StatusRecord:
    """What the file shows."""

    name: str
    pid: int
    ppid: int
    uid: int = 0
    umask: int = 0o22
    state: str = "S (sleeping)"
    pgid: int = 0
    sid: int = 0
    fd_size: int = 64
    memory: MemoryLines = field(default_factory=MemoryLines)
    thp_enabled: int = 1
    threads: int = 1
    pending_limit: int = 0
    capabilities: int = 0
    bounding: int = (1 << len(CAPABILITIES)) - 1
    cpus: list[int] = field(default_factory=lambda: [0])
    nr_cpus: int = 1
    mems: list[int] = field(default_factory=lambda: [0])
    bugs: tuple[str, str] = ("not vulnerable", "not affected")
    switches: tuple[int, int] = (0, 0)


_MEMORY = (
    ("VmPeak", "peak"),
    ("VmSize", "size"),
    ("VmLck", "locked"),
    ("VmPin", "pinned"),
    ("VmHWM", "hwm"),
    ("VmRSS", "rss"),
    ("RssAnon", "rss_anon"),
    ("RssFile", "rss_file"),
    ("RssShmem", "rss_shmem"),
    ("VmData", "data"),
    ("VmStk", "stack"),
    ("VmExe", "exe"),
    ("VmLib", "lib"),
    ("VmPTE", "pte"),
    ("VmSwap", "swap"),
    ("HugetlbPages", "hugetlb"),
)


def _lines(record: StatusRecord) -> Iterator[tuple[str, object]]:
    yield "Name", escape_comm(record.name)
    yield "Umask", f"{record.umask:04o}"
    yield "State", record.state
    yield "Tgid", record.pid
    yield "Ngid", 0
    yield "Pid", record.pid
    yield "PPid", record.ppid
    yield "TracerPid", 0
    for name in ("Uid", "Gid"):
        yield name, "\t".join([str(record.uid)] * 4)
    yield "FDSize", record.fd_size
    yield "Groups", " "
    yield "NStgid", record.pid
    yield "NSpid", record.pid
    yield "NSpgid", record.pgid
    yield "NSsid", record.sid
    yield "Kthread", 0
    for name, attribute in _MEMORY:
        yield name, f"{getattr(record.memory, attribute):8} kB"
    yield "CoreDumping", 0
    yield "THP_enabled", record.thp_enabled
    yield "untag_mask", f"{(1 << 64) - 1:#x}"
    yield "Threads", record.threads
    yield "SigQ", f"0/{record.pending_limit}"
    for name in ("SigPnd", "ShdPnd", "SigBlk", "SigIgn", "SigCgt"):
        yield name, f"{0:016x}"
    yield "CapInh", f"{0:016x}"
    yield "CapPrm", f"{record.capabilities:016x}"
    yield "CapEff", f"{record.capabilities:016x}"
    yield "CapBnd", f"{record.bounding:016x}"
    yield "CapAmb", f"{0:016x}"
    yield "NoNewPrivs", 0
    yield "Seccomp", 0
    yield "Seccomp_filters", 0
    yield "Speculation_Store_Bypass", record.bugs[0]
    yield "SpeculationIndirectBranch", record.bugs[1]
    yield "Cpus_allowed", format_mask(record.cpus, record.nr_cpus)
    yield "Cpus_allowed_list", format_list(record.cpus)
    yield "Mems_allowed", format_mask(record.mems, MAX_NODES)
    yield "Mems_allowed_list", format_list(record.mems)
    yield "voluntary_ctxt_switches", record.switches[0]
    yield "nonvoluntary_ctxt_switches", record.switches[1]


def format_status(record: StatusRecord) -> str:
    """Write the file's text."""
    return "".join(f"{name}:\t{value}\n" for name, value in _lines(record))


def comm(name: str) -> str:
    """Cut a name to what Linux keeps of it."""
    return name.encode()[:COMM_BYTES].decode(errors="ignore")


def escape_comm(name: str) -> str:
    """Cut a name, and write newlines and backslashes so that a line stays one."""
    return comm(name).replace("\\", "\\\\").replace("\n", "\\n")


def memory_lines(core: Any) -> MemoryLines:
    """Read the kernel side's counters of an address space, in kB."""
    total, data, executable, stack, locked = core.counters
    file, anon, swap, shmem = core.rss
    rss = file + anon + shmem
    hiwater_rss, hiwater_vm = core.hiwater
    pages = MemoryLines(
        peak=max(hiwater_vm, total), size=total, locked=locked, hwm=max(hiwater_rss, rss), rss=rss,
        rss_anon=anon, rss_file=file, rss_shmem=shmem, data=data, stack=stack, lib=executable,
        pte=core.nr_ptes, swap=swap,
    )  # fmt: skip
    return MemoryLines(**{
        name: getattr(pages, name) << (PAGE_SHIFT - 10) for _, name in _MEMORY
    })


def process_status(process: Any) -> str:
    """Give a process's file."""
    machine = process.machine
    cpus = sorted(cpu for node in machine.nodes for cpu in node.cpus)
    held = process.mm.capabilities
    return format_status(StatusRecord(
        name=process.name,
        pid=process.pid,
        ppid=0 if process.parent is None else process.parent.pid,
        uid=process.uid,
        memory=memory_lines(process.mm.core),
        thp_enabled=int(not process.mm.thp_disabled),
        capabilities=sum(1 << i for i, name in enumerate(CAPABILITIES) if f"CAP_{name}" in held),
        cpus=cpus,
        nr_cpus=max(cpus, default=0) + 1,
        mems=[node.id for node in machine.nodes if node.memory],
    ))  # fmt: skip
