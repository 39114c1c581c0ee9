"""``/proc/PID``: what a process looks like from outside; one module for each family of files."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from realmem.procfs.pid.clear_refs import write_clear_refs
from realmem.procfs.pid.maps import process_maps
from realmem.procfs.pid.numa_maps import process_numa_maps
from realmem.procfs.pid.smaps import process_rollup, process_smaps
from realmem.procfs.pid.stat import process_stat, process_statm
from realmem.procfs.pid.status import process_status
from realmem.procfs.tree import TextFile

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

_READERS: Mapping[str, Callable[[Any], str]] = {
    "maps": process_maps,
    "numa_maps": process_numa_maps,
    "smaps": process_smaps,
    "smaps_rollup": process_rollup,
    "stat": process_stat,
    "statm": process_statm,
    "status": process_status,
}
NAMES = tuple(sorted([*_READERS, "clear_refs"]))


def pid_file(process: Any, name: str) -> TextFile:
    """
    Give one file of a process.

    :param name: one of NAMES.
    """
    if name == "clear_refs":
        return TextFile(None, lambda text: write_clear_refs(process, text))
    reader = _READERS[name]
    return TextFile(lambda: reader(process))


def pid_files(process: Any) -> Iterator[tuple[str, TextFile]]:
    """Give every file of a process with its path."""
    for name in NAMES:
        yield f"/proc/{process.pid}/{name}", pid_file(process, name)
