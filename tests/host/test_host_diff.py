"""realmem does what the kernel that it runs on does, step by step; python -m host takes more."""

from __future__ import annotations

import os
import platform
import re
import subprocess
import sys
from pathlib import Path

import pytest
from backends import BACKENDS, needs_backend
from host.compare import Divergence, Pair, Parted, replay
from host.generate import Generator
from host.ops import BASE, CALLS, HEAP_DISTANCE, OUTSIDE, PAGE, Answer, Op, spell
from host.shrink import script, shrink

TESTS = Path(__file__).resolve().parent.parent
RW, ANON, SHARED, FIXED = 3, 0x22, 1, 0x10
ROW = re.compile(r"^(\w+) +([\d.]+) %  (.*)$", re.MULTILINE)

pytestmark = pytest.mark.skipif(
    platform.machine() != "x86_64", reason="the drivers of the host's side are x86-64 code")


def needs_the_same_kernel() -> None:
    release = re.match(r"(\d+)\.(\d+)", platform.release())
    assert release is not None
    if tuple(map(int, release.groups())) < (6, 17):
        pytest.skip("needs Linux 6.17 or later: realmem's mremap, mseal and guard regions are its")


def host(*options: str, timeout: float = 1200) -> subprocess.CompletedProcess[str]:
    """Run `python -m host` with the realmem that this process has."""
    if os.environ.get("REALMEM_HOST_SHRINK") == "0":        # who only asks whether it fails
        options = (*options, "--no-shrink")
    editable = any("editable" in type(finder).__module__ for finder in sys.meta_path)
    code = (f"import sys; sys.path[:] = {sys.path!r}\n"
            f"if not {editable}:\n"
            "    sys.meta_path = [f for f in sys.meta_path"
            " if 'editable' not in type(f).__module__]\n"
            "import runpy; sys.argv[1:] = " + repr(list(options)) + "\n"
            "runpy.run_module('host', run_name='__main__', alter_sys=True)\n")
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True,
                          timeout=timeout, stdin=subprocess.DEVNULL, check=False)


def shares(text: str) -> dict[str, float]:
    return {name: float(share) for name, share, _ in ROW.findall(text)}


@pytest.mark.parametrize("faults", BACKENDS)
def test_some_thousand_steps_agree(faults):
    needs_the_same_kernel()
    needs_backend(faults)
    done = host("--steps", "12000", "--seed", "1", "--faults", faults)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.slow
def test_a_hundred_thousand_steps_agree(soak_factor):
    needs_the_same_kernel()
    steps = int(100_000 * soak_factor)
    done = host("--steps", str(steps), "--seed", str(int(soak_factor)),
                "--jobs", str(min(2, len(os.sched_getaffinity(0)))))
    print(done.stdout)
    assert done.returncode == 0, done.stdout + done.stderr
    part = shares(done.stdout)
    assert {name for name in (*CALLS, *OUTSIDE, "read", "write", "fork", "exit")
            if part.get(name, 0) < 2} == set()
    unfixed = re.search(r"^(\d+) % of the maps were not fixed", done.stdout, re.MULTILINE)
    assert unfixed is not None
    assert int(unfixed[1]) >= 30
    # What calls can refuse, they do: a generator that only makes good calls shows nothing.
    ways = {name: rest for name, _, rest in ROW.findall(done.stdout)}
    for name, refusals in {
        "mmap": "ENOMEM EINVAL EEXIST EPERM EAGAIN EBADF EACCES EOVERFLOW ENOTSUP",
        "munmap": "EINVAL EPERM", "mprotect": "ENOMEM EINVAL EPERM EACCES",
        "mremap": "EFAULT EINVAL EPERM ENOMEM EAGAIN",
        "madvise": "EINVAL ENOMEM EPERM EFAULT EACCES", "process_madvise": "EINVAL ENOMEM",
        "mincore": "ENOMEM EINVAL", "mlock": "ENOMEM EPERM", "mlock2": "ENOMEM EINVAL EPERM",
        "munlock": "ENOMEM", "mlockall": "EINVAL EPERM ENOMEM", "mseal": "ENOMEM EINVAL",
        "msync": "ENOMEM EINVAL EBUSY", "prctl": "EINVAL", "read": "MAPERR ACCERR bus",
        "write": "MAPERR ACCERR bus", "touch": "MAPERR ACCERR bus",
    }.items():
        assert {way for way in refusals.split() if way not in ways[name]} == set(), ways[name]


def test_the_host_agrees_with_itself():
    done = host("--twice", "--steps", "3000", "--seed", "2")
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.endswith("3200 steps, seed 2\n")


class Lying:
    """A world that takes another step instead of one kind, or none."""

    def __init__(self, world, lie):
        self._world, self._lie = world, lie

    def apply(self, op):
        taken = self._lie(op)
        return Answer("ok") if taken is None else self._world.apply(taken)

    def __getattr__(self, name):
        return getattr(self._world, name)


@pytest.fixture(scope="module")
def host_worlds():
    from host.host_world import HostWorld

    worlds = HostWorld(HEAP_DISTANCE), HostWorld(HEAP_DISTANCE)
    yield worlds
    for world in worlds:
        world.close()


@pytest.mark.parametrize(("what", "lie"), {
    "contents": lambda op: op if op.name != "write" else op._replace(
        args=(*op.args[:2], op.args[2] ^ 1, op.args[3])),
    "maps": lambda op: op if op.name != "munmap" else None,
    "answer": lambda op: op if op.name != "mseal" or op.args[2] != 1 else None,
    "pagemap": lambda op: op if op.name != "touch" or not op.args[2] else None,
    "VmFlags": lambda op: op if op.name != "madvise" or op.args[2] != 18 or op.args[0] % PAGE
    else None,
    "bytes": lambda op: op if op.name != "pwrite" else None,
    "pages": lambda op: op if op.name != "truncate" else None,
}.items())
def test_a_world_that_lies_is_found_out_and_the_steps_are_few(host_worlds, what, lie):
    one, other = host_worlds
    pair = Pair(one, Lying(other, lie))
    ops: list[Op] = []

    def lies(some: list[Op]) -> Divergence | None:
        return replay(pair, some)

    divergence = None
    for seed in range(20):
        pair.reset()
        generator, ops = Generator(seed), []
        try:
            for step in range(300):
                begin = generator.start(BASE - HEAP_DISTANCE)
                ops.append(begin[step] if step < len(begin) else generator.next(pair))
                pair.step(ops[-1])
            pair.compare_all()
        except Parted as parted:
            if parted.what.startswith(what):
                divergence = Divergence(len(ops) - 1, parted.what, "", "")
                break
    assert divergence is not None
    few, last = shrink(ops, divergence, lies)
    assert len(few) <= 8, [str(op) for op in few]
    assert replay(pair, few) is not None
    one.reset()
    text = script([(op, one.apply(op)) for op in few], last)
    compile(text, "script", "exec")
    assert "host: " in text


def test_a_script_names_addresses_from_the_base():
    assert [spell(BASE - PAGE), spell(BASE), spell(0), spell(-1 & (1 << 64) - 1)] == [
        "base - 0x1000", "base", "0", "0xffffffffffffffff"]
    text = script([(Op(1, "spawn"), Answer("ok")),
                   (Op(1, "mmap", (BASE - PAGE, PAGE, RW, ANON | FIXED, 0)),
                    Answer("ok", BASE - PAGE))], Divergence(1, "maps of 1", "x", "y"))
    assert ("step(p1.mmap, base - 0x1000, 0x1000, 0x3, 0x32, None, 0x0)   # host: base - 0x1000"
            in text)


def test_a_script_with_files_runs(host_worlds, capsys):
    one, _ = host_worlds
    one.reset()
    at = BASE - 6 * PAGE
    steps = [Op(1, "spawn"), Op(1, "mmap", (at, 6 * PAGE, RW, SHARED | FIXED, 0, 0, os.O_RDWR)),
             Op(1, "write", (at + PAGE, 2, 65, False)), Op(1, "msync", (at, 6 * PAGE, 4)),
             Op(0, "pwrite", (0, PAGE + 1, 1, 90)), Op(0, "drop", (0,)),
             Op(1, "read", (at + PAGE, 2, 0, False)), Op(0, "truncate", (0, PAGE)),
             Op(1, "write", (at + PAGE, 1, 65, False))]
    text = script([(op, one.apply(op)) for op in steps], Divergence(8, "none", "", ""))
    one.reset()
    assert "# host: bus error at base - 0x5000, 0 done" in text
    names: dict[str, object] = {}
    exec(compile(text, "script", "exec"), names)
    names["machine"].close()
    names["folder"].cleanup()
    for fd in (fd for fds in names["files"] for fd in fds):
        os.close(fd)
    *_, read, refused = capsys.readouterr().out.splitlines()
    assert read.endswith("-> b'AZ'")
    assert "BusError" in refused


def test_looking_changes_nothing(host_worlds):
    one, other = host_worlds
    pair = Pair(one, other)
    pair.reset()
    for op in (Op(1, "spawn"), Op(1, "mmap", (0, 8 * PAGE, RW, ANON, 0)),
               Op(1, "write", (BASE - 3 * PAGE, 10, 65, False)), Op(1, "fork", (2,))):
        pair.step(op)
    before = one.look(2)
    assert sum(word >> 63 for word in before.words[0]) == 1
    pair.compare_all()
    assert one.look(2) == before
    assert one.contents(2, [(BASE - 3 * PAGE, 0)])[0][:10] == bytes(range(65, 75))
    pair.reset()
