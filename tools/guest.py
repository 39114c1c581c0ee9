"""
Run a command in a guest with several NUMA nodes, on a host that may have one.

    .venv/bin/python tools/guest.py --topology two -- numactl -H

virtme-ng boots a distribution kernel over the host's own root file system, read-only, so that
what is installed here runs there unchanged; no KVM is needed and none is used (--kvm tries it).
Memory placement in the guest is the guest kernel's business and as real as on any machine;
timings mean nothing.  DIR (--share) is writable at the same path.  The exit status is the
command's own, or 125 when the guest did not get that far: then its console is shown.
"""

from __future__ import annotations

import argparse
import os
import shlex
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import IO, NamedTuple

import sysdeps

NOT_BOOTED = 125


class Topology(NamedTuple):
    """A guest's nodes: megabytes, CPUs, and what each node is from each other."""

    what: str
    nodes: tuple[tuple[int, str | None], ...]
    distance: tuple[tuple[int, ...], ...]


TOPOLOGIES = {
    "two": Topology("two nodes", ((1024, "0-1"), (1024, "2-3")), ((10, 21), (21, 10))),
    # Distances such that no two nodes fall back in the same order, and none by number.
    "four": Topology("four nodes, the last memory-only",
                     ((640, "0-1"), (640, "2"), (640, "3"), (640, None)),
                     ((10, 12, 20, 31),
                      (12, 10, 25, 17),
                      (20, 25, 10, 28),
                      (31, 17, 28, 10))),
}


def arguments(topology: Topology) -> list[str]:
    """Return vng's words for a topology; with more than two nodes every pair needs a distance."""
    words = ["--cpus", "4", "--memory", f"{sum(size for size, _ in topology.nodes)}M"]
    for size, cpus in topology.nodes:
        words += ["--numa", f"{size}M" + (f",cpus={cpus}" if cpus else "")]
    for source, row in enumerate(topology.distance):
        for target, value in enumerate(row):
            if source != target:
                words += ["--numa-distance", f"{source},{target}={value}"]
    return words


def pump(stream: IO[str], take: Callable[[str], object]) -> threading.Thread:
    """Hand each line of a stream on until it ends, in a thread."""
    def work() -> None:
        for line in stream:
            take(line.rstrip("\r\n"))
    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    return thread


def show(line: str) -> None:
    """Print a line of the guest's output at once."""
    print(line, flush=True)


def end(process: subprocess.Popen[str]) -> None:
    """End vng and the qemu it started, by their process group."""
    for how in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, how)
        except ProcessLookupError:
            return
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            continue


def boot(topology: Topology, command: str, share: Path, boot_s: float = 300,
         run_s: float = 1800, kvm: bool = False,
         take: Callable[[str], object] = show) -> int:
    """
    Boot a guest and run a shell command in it.

    :param topology: the nodes.
    :param command: run by bash, as root, in `share`; takes no input.
    :param share: a folder that the guest sees at the same path, writable.
    :param boot_s: how long the boot may take, in seconds.
    :param run_s: how long the command may take, in seconds.
    :param kvm: use /dev/kvm.
    :param take: called with each line of output.
    :return: the command's exit status, or NOT_BOOTED.
    """
    kernels = sysdeps.guest_kernels()
    if not kernels:
        take("no guest kernel in /boot")
        return NOT_BOOTED
    with tempfile.TemporaryDirectory(prefix=".guest-", dir=share) as folder:
        started, status, script = (Path(folder, name) for name in ("started", "status", "run"))
        script.write_text(f"echo > {shlex.quote(str(started))}\ncd {shlex.quote(str(share))}\n"
                          f"(\n{command}\n) 2>&1 < /dev/null\n"
                          f"echo $? > {shlex.quote(str(status))}\nsync\n")
        # virtme-ng finds its own programs by PATH
        env = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ.get('PATH', '')}"}
        argv = [sys.executable, "-m", "virtme_ng.run", "--run", str(kernels[0]),
                *([] if kvm else ["--disable-kvm"]), "--disable-microvm", "--force-9p",
                "--verbose", "--append", "loglevel=4", "--user", "root",
                "--rwdir", str(share), "--cwd", str(share), *arguments(topology),
                "--", f"bash {shlex.quote(str(script))}"]
        process = subprocess.Popen(argv, env=env, text=True, errors="replace",
                                   stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                                   stderr=subprocess.PIPE, start_new_session=True)
        assert process.stdout and process.stderr
        console: list[str] = []
        pumps = [pump(process.stdout, take), pump(process.stderr, console.append)]
        begun = time.monotonic()
        limit, what = begun + boot_s, "boot"
        try:
            while process.poll() is None and not status.exists():
                if what == "boot" and started.exists():
                    limit, what = time.monotonic() + run_s, "finish"
                if time.monotonic() > limit:
                    break
                time.sleep(0.5)
            if status.exists():
                try:
                    process.wait(30)            # let it flush its output and power off
                except subprocess.TimeoutExpired:
                    pass
        finally:
            end(process)
        for thread in pumps:
            thread.join(10)
        process.stdout.close()
        process.stderr.close()
        if status.exists() and status.read_text().strip():
            return int(status.read_text())
        for line in console[-60:]:
            take(f"console: {line}")
        take(f"the guest did not {what} within {time.monotonic() - begun:.0f} s"
             f" (vng's status: {process.returncode})")
        return NOT_BOOTED


def main() -> int:
    """Run as a command."""
    parser = argparse.ArgumentParser(description="Run a command in a guest with NUMA nodes.")
    parser.add_argument("--topology", choices=sorted(TOPOLOGIES), default="two")
    parser.add_argument("--share", type=Path, default=Path("build"), metavar="DIR")
    parser.add_argument("--kvm", action="store_true", help="use /dev/kvm")
    parser.add_argument("command", nargs="+")
    chosen = parser.parse_args()
    chosen.share.mkdir(parents=True, exist_ok=True)
    return boot(TOPOLOGIES[chosen.topology], shlex.join(chosen.command),
                chosen.share.resolve(), kvm=chosen.kvm)


if __name__ == "__main__":
    sys.exit(main())
