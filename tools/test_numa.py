"""
Run tests/numa on real NUMA nodes: in a guest of two, then in a guest of four.

    make test-numa            or: .venv/bin/python tools/test_numa.py [--topology two] [-- ARGS]

realmem is built as a wheel and installed, as a user would have it, into a virtual environment of
its own that the guests see; the tests run there under the guest's kernel.  What is missing on
the system is installed as root; otherwise it is named, and the tests count as skipped (status 0).
"""

from __future__ import annotations

import argparse
import hashlib
import os
import platform
import shlex
import shutil
import sys
from pathlib import Path

import bootstrap
import guest
import sysdeps

# Guests mount their own file systems over these.
HIDDEN = ("/tmp", "/run", "/var/tmp", "/var/log", "/var/cache", "/dev")


def stage_folder() -> Path:
    """Return where the guests' environment lies: in the checkout, unless guests cannot see it."""
    if not any(bootstrap.ROOT.is_relative_to(hidden) for hidden in HIDDEN):
        return bootstrap.ROOT / "build/numa"
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    name = hashlib.sha256(str(bootstrap.ROOT).encode()).hexdigest()[:12]
    return cache / f"realmem/numa-{name}"


def prepare(stage: Path) -> Path:
    """Build and install realmem in `stage`, copy the tests there; return its Python."""
    root = bootstrap.ROOT
    shutil.rmtree(stage / "wheel", ignore_errors=True)
    stage.mkdir(parents=True, exist_ok=True)
    bootstrap.say("building a wheel for the guests")
    bootstrap.call([sys.executable, "-m", "pip", "wheel", "-q", "--no-build-isolation",
                    "--no-deps", f"-Cbuild-dir={root / 'build/wheel'}", "-w",
                    str(stage / "wheel"), str(root)], path_first=Path(sys.executable).parent)
    wheel, = (stage / "wheel").glob("*.whl")
    venv = stage / "venv"
    bootstrap.make_venv(venv)
    bootstrap.pip_install(venv, *bootstrap.requirements(venv, ["run", "test"]))
    bootstrap.pip_install(venv, "--no-deps", "--force-reinstall", str(wheel))
    shutil.rmtree(stage / "tests", ignore_errors=True)
    shutil.copytree(root / "tests/numa", stage / "tests/numa")
    for name in ("conftest.py", "refuse.py"):
        shutil.copy(root / "tests" / name, stage / "tests")
    shutil.copy(root / "pyproject.toml", stage)
    return venv / "bin/python"


def main() -> int:
    """Run as a command."""
    parser = argparse.ArgumentParser(description="Run tests/numa in NUMA guests.")
    parser.add_argument("--topology", action="append", choices=sorted(guest.TOPOLOGIES))
    parser.add_argument("--kvm", action="store_true", help="use /dev/kvm")
    parser.add_argument("args", nargs="*", help="for pytest")
    chosen = parser.parse_args()
    if platform.machine() != "x86_64":
        print(f"test-numa: skipped: guests are x86-64, this host is {platform.machine()}")
        return 0
    problem = sysdeps.ensure(sysdeps.GUEST)
    if problem:
        print(f"test-numa: skipped: {problem}")
        return 0
    bootstrap.pip_install(Path(sys.prefix), *bootstrap.requirements(Path(sys.prefix), ["numa"]))
    stage = stage_folder()
    python = prepare(stage)
    tests = [str(python), "-m", "pytest", "tests/numa", "-p", "no:cacheprovider", "--color=no",
             *chosen.args]
    failed = []
    for name in chosen.topology or ["two", "four"]:
        topology = guest.TOPOLOGIES[name]
        print(f"test-numa: {topology.what}", flush=True)
        status = guest.boot(topology, f"CI=true {shlex.join(tests)}", stage, kvm=chosen.kvm)
        if status:
            failed.append(f"{topology.what}: status {status}")
    for failure in failed:
        print(f"test-numa: FAILED: {failure}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
