"""Fixtures, options and markers that any test may use."""

from __future__ import annotations

import ctypes
import errno
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, settings

if TYPE_CHECKING:
    from realmem.machine import Machine
    from realmem.process import Process

HERE = Path(__file__).resolve().parent

# A shared or emulated machine is no reason to fail: no deadlines, and no health check on speed.
# CI repeats the same examples; by hand and in a soak they vary.
settings.register_profile("hand", deadline=None,
                          suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("ci", settings.get_profile("hand"), derandomize=True, database=None)
settings.load_profile("ci" if os.environ.get("CI") else "hand")


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add --soak and --faults."""
    parser.addoption("--soak", type=float, default=1, metavar="FACTOR",
                     help="make the tests that use `soak_factor` and hypothesis this much longer")
    parser.addoption("--faults", choices=["sigsegv", "userfaultfd"], default="sigsegv",
                     help="what machines use that do not say: every test by the other backend")


def pytest_configure(config: pytest.Config) -> None:
    """Apply --soak to hypothesis, and --faults to machines, in children, too."""
    os.environ["REALMEM_TEST_FAULTS"] = config.getoption("--faults")
    use_backend()
    factor = config.getoption("--soak")
    if factor > 1:
        hand = settings.get_profile("hand")
        settings.register_profile("soak", hand, max_examples=int(hand.max_examples * factor))
        settings.load_profile("soak")


def use_backend() -> None:
    """Have machines that do not say which backend they use take the tests' one."""
    from realmem.machine import Machine

    backend = os.environ.get("REALMEM_TEST_FAULTS", "sigsegv")
    Machine.__init__.__kwdefaults__["faults"] = backend


def nodes_with_memory() -> int:
    """Count the host's NUMA nodes that have memory."""
    try:
        text = Path("/sys/devices/system/node/has_memory").read_text().strip()
    except OSError:
        return 1
    spans = [span.split("-") for span in text.split(",") if span]
    return sum(int(span[-1]) - int(span[0]) + 1 for span in spans)


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip what needs more NUMA nodes than there are."""
    mark = item.get_closest_marker("numa")
    if mark:
        wanted = mark.kwargs.get("nodes", 2)
        there = nodes_with_memory()
        if there < wanted:
            pytest.skip(f"needs {wanted} NUMA nodes with memory, this host has {there}")


@pytest.fixture
def soak_factor(request: pytest.FixtureRequest) -> float:
    """How many times longer than usual a long test should run (make soak)."""
    return float(request.config.getoption("--soak"))


@pytest.fixture(scope="session")
def numa_calls() -> None:
    """Skip where the host, such as a container, refuses to place memory or to tell its place."""
    try:
        libnuma = ctypes.CDLL("libnuma.so.1", use_errno=True)
    except OSError:
        pytest.skip("libnuma.so.1 is missing")
    long = ctypes.c_ulong
    refused = [name for name, arguments in {
        "mbind": (None, long(0), 0, None, long(0), 0),
        "get_mempolicy": (None, None, long(0), None, 0),
        "move_pages": (0, long(0), None, None, None, 0),
    }.items() if getattr(libnuma, name)(*arguments) and ctypes.get_errno() in (
        errno.EPERM, errno.ENOSYS)]
    if refused:
        pytest.skip(f"this host refuses {', '.join(refused)}")


@pytest.fixture
def process(machine: Machine) -> Iterator[Process]:
    """Give a process of the file's `machine`; whatever the test did, the machine is whole."""
    p = machine.spawn("test")
    yield p
    if p.pid in machine.processes:
        p.exit()
    machine.check()


Run = Callable[..., "subprocess.CompletedProcess[str]"]


def run(argv: list[str], **options: object) -> subprocess.CompletedProcess[str]:
    """Run a child to its end with its output captured; it never waits for input."""
    usual: dict[str, object] = {"stdin": subprocess.DEVNULL, "capture_output": True,
                                "text": True, "timeout": 120}
    return subprocess.run(argv, **{**usual, **options})  # type: ignore[call-overload,no-any-return]


@pytest.fixture
def python() -> Run:
    """
    Run Python code in a child: `python("print(1)")`.

    Whatever may die belongs there; look at `.returncode` (-SIGSEGV), `.stdout` and `.stderr`.
    Other keywords go to subprocess.run.
    """
    return lambda code, **options: run([sys.executable, "-c", code], **options)


@pytest.fixture
def refusing() -> Run:
    """
    Run a command as a container would, its NUMA system calls refused with EPERM.

    `refusing([sys.executable, "-c", code], deny="mbind,move_pages", errno="ENOSYS")`;
    tests/refuse.py lists the names it knows.
    """
    def refused(argv: list[str], *, deny: str | None = None, errno: str = "EPERM",
                **options: object) -> subprocess.CompletedProcess[str]:
        names = ["--deny", deny] if deny else []
        return run([sys.executable, str(HERE / "refuse.py"), *names, "--errno", errno,
                    "--", *argv], **options)
    return refused
