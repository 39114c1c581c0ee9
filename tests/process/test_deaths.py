"""Ways to die: a wild pointer amid many processes, and kill -9, which leaves nothing behind."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest
from whole_process import PRELUDE

CROWD = """
    faulthandler.enable()
    with Machine(nodes=1, memory="64M", window="1G") as machine:
        crowd = [machine.spawn()]
        a, x = mapped(crowd[0], 8 * PAGE)
        x[::512] = 1
        for i in range(60):
            crowd.append(crowd[i // 2].fork())
            at = (3 + 7 * i) << 30
            crowd[-1].mmap(at, PAGE, RW, ANON | MAP_FIXED)      # a window on demand
            array(crowd[-1], at, PAGE)[0] = i
        for one in crowd[40:]:
            one.exit()
        def wild():
            assert array(crowd[5], a, PAGE)[0] == 1
            print("alive", flush=True)
            ctypes.memset(WHERE, 0, 1)
            print("survived", flush=True)
"""


@pytest.mark.crash
@pytest.mark.parametrize("thread", [False, True], ids=["main", "thread"])
@pytest.mark.parametrize("where", ["0x10", "1 << 46", "near", "gone"])
def test_a_wild_pointer_amid_many_processes(child, where, thread) -> None:
    """Near: just below a window's host addresses; gone: in the window of a process that exited."""
    code = CROWD.replace("WHERE", where if where[0] in "01" else "target")
    if where == "near":
        code += """
        # The first address below the lowest window that nothing is mapped at.
        with open("/proc/self/maps") as maps:
            spans = [tuple(int(n, 16) for n in line.split()[0].split("-")) for line in maps]
        low = min(one.host_address(at) for one in crowd[:40] for at, n in one.mm.core.windows)
        target = low - 1
        while any(start <= target < end for start, end in spans):
            target = min(start for start, end in spans if start <= target < end) - 1
"""
    elif where == "gone":
        code += """
        one = machine.spawn()
        b, y = mapped(one, PAGE)
        y[0] = 1
        target = one.host_address(b)
        del y
        one.exit()
        machine.spawn().exit()      # its window was given back
"""
    code += """
        t = threading.Thread(target=wild)
        t.start()
        t.join()
""" if thread else """
        wild()
"""
    done = child(code, returncode=-signal.SIGSEGV)
    assert done.stdout == "alive\n"
    assert "Fatal Python error: Segmentation fault" in done.stderr
    assert 'File "<string>", line' in done.stderr and "in wild" in done.stderr


BUSY = """
    import random
    rng = random.Random(SEED)
    print("begun", flush=True)
    while True:
        with Machine(nodes=2, memory="16M", window="1G") as machine:
            print("made", flush=True)
            live = [machine.spawn()]
            for turn in range(300):
                one = rng.choice(live)
                a, x = mapped(one, rng.randint(1, 30) * PAGE)
                x[::512] = turn
                one.mmap(rng.randrange(1, 1 << 15) << 30, PAGE, RW, ANON | MAP_FIXED)
                if len(live) < 12:
                    live.append(one.fork())
                elif rng.random() < 0.5:
                    live.remove(one)
                    one.exit()
                else:
                    one.munmap(a, PAGE)
                del x
"""


def left_on_the_host(session: int) -> list[str]:
    """What is left of a session of processes: members, by pid and state but for zombies."""
    left = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rsplit(") ", 1)[1].split()
        except OSError:
            continue
        if int(fields[3]) == session and fields[0] != "Z":
            left.append(stat.parent.name)
    return left


def own_files() -> set[str]:
    """Files that realmem could leave in places where memory lives."""
    places = [Path("/dev/shm"), Path("/dev/hugepages")]
    return {str(file) for place in places if place.is_dir() for file in place.iterdir()
            if "realmem" in file.name}


def kill_somewhere(rng: random.Random) -> None:
    code = f"SEED = {rng.randrange(1000)}\n" + PRELUDE + textwrap.dedent(BUSY)
    busy = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE,
                            start_new_session=True)
    assert busy.stdout is not None
    assert busy.stdout.readline() == b"begun\n"
    time.sleep(rng.random() * 0.4)
    os.kill(busy.pid, signal.SIGKILL)
    assert busy.wait(20) == -signal.SIGKILL
    # Whoever held the pipe, a child of the machine's included, has gone when it ends.
    busy.stdout.read()
    busy.stdout.close()
    deadline = time.monotonic() + 20
    while left_on_the_host(busy.pid) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert left_on_the_host(busy.pid) == []


@pytest.mark.crash
def test_a_kill_leaves_nothing(soak_factor) -> None:
    """At any moment: while memory is populated by a child, while processes come and go."""
    rng = random.Random(3)
    files = own_files()
    for _ in range(int(6 * soak_factor)):
        kill_somewhere(rng)
    assert own_files() <= files
