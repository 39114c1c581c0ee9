"""Machines that nobody closed: their processes end before their frames go."""

from __future__ import annotations

import pytest

ABANDON = """
def abandon(keep):
    machine = Machine(nodes=1, memory="16M", zones={"DMA": 0, "DMA32": "4G"})
    p = machine.spawn()
    addr = p.mmap(None, 1 << 21, RW, ANON)
    p.write(addr, b"7")
    p.fork()
    return {"nothing": None, "view": p.view(addr, PAGE), "process": p, "machine": machine}[keep]

def held():
    maps = sum("memfd" in line for line in open("/proc/self/maps"))
    return maps, len(os.listdir("/proc/self/fd"))
"""


@pytest.mark.parametrize("keep", ["nothing", "view", "process", "machine"])
def test_collected(child, keep):
    child(
        ABANDON
        + f"""
before = held()
kept = abandon({keep!r})
gc.collect()
if {keep!r} == "view":
    kept[1] = 5
    assert bytes(kept[:2]) == b"7" + bytes([5])
if {keep!r} == "process":
    kept.write(kept.mmap(None, PAGE, RW, ANON), b"x")
del kept
gc.collect()
assert held() == before, (held(), before)
"""
    )


def test_still_there_at_exit(child):
    child(ABANDON + "kept = [abandon('machine'), abandon('process'), abandon('view')]")


def test_collected_in_a_forked_child(child):
    child(
        ABANDON
        + """
kept = abandon("machine")
pid = os.fork()
if pid == 0:
    del kept
    gc.collect()
    os._exit(0)
assert os.waitpid(pid, 0)[1] == 0
kept.check()
kept.close()
"""
    )
