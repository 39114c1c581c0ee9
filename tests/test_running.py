"""p.run_on() and p.on(): which node software accesses come from; where copies go."""

from __future__ import annotations

import errno
import os
import random
import signal
import threading

import pytest

import realmem as rm
from realmem import (
    MAP_ANONYMOUS,
    MAP_POPULATE,
    MAP_PRIVATE,
    PAGE_SIZE,
    PROT_READ,
    PROT_WRITE,
    host,
)

RW, ANON = PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS
P = PAGE_SIZE


@pytest.fixture
def machine():
    with rm.Machine(nodes=3, memory="32M", window="1G") as machine:
        yield machine
        machine.check()


@pytest.fixture
def process(machine):
    return machine.spawn()


def node_of(process, addr):
    return process.machine.pfn_to_page(process.walk(addr)[-1].decoded["pfn"]).node


def node_of_cpu(machine, cpu):
    (node,) = [node.id for node in machine.nodes if cpu in node.cpus]
    return node


def nodes_of_tables(process, addr):
    steps = process.walk(addr)
    return {process.machine.pfn_to_page(step.address // P).node for step in steps[1:]}


@pytest.mark.parametrize("node", [0, 1, 2])
def test_software_accesses_take_memory_there(machine, process, node):
    process.run_on(node=node)
    before = machine.nodes[node].stat
    at = process.mmap(None, 16 * P, RW, ANON)
    process.write(at, b"x")
    process.fill(at + P, P, 1)
    process.touch(at + 2 * P, P, write=True)
    process.access([at + 3 * P], True)
    with process.pin(at + 4 * P, P, write=True):
        pass
    populated = process.mmap(None, 4 * P, RW, ANON | MAP_POPULATE)
    places = [at + i * P for i in range(5)] + [populated + i * P for i in range(4)]
    assert {node_of(process, place) for place in places} == {node}
    assert nodes_of_tables(process, at) == {node}
    # A process that runs there takes what is local to it (Linux's numastat).
    after = machine.nodes[node].stat
    assert after["local_node"] - before["local_node"] >= 9
    assert after["other_node"] == before["other_node"]
    assert after["numa_miss"] == before["numa_miss"]


def test_it_can_move_and_come_back(machine, process):
    at = process.mmap(None, 16 * P, RW, ANON)
    for page, node in enumerate((2, 1, 2, 0)):
        process.run_on(node=node)
        process.write(at + page * P, b"x")
        assert node_of(process, at + page * P) == node
    process.run_on()
    allowed = os.sched_getaffinity(0)
    cpu = min(allowed)
    os.sched_setaffinity(0, {cpu})
    try:
        process.write(at + 8 * P, b"x")
    finally:
        os.sched_setaffinity(0, allowed)
    assert node_of(process, at + 8 * P) == node_of_cpu(machine, cpu)


def test_a_cpu_stands_for_its_node(machine, process):
    for cpu in host.present_cpus():
        node = node_of_cpu(machine, cpu)
        process.run_on(cpu=cpu)
        at = process.mmap(None, P, RW, ANON)
        process.write(at, b"x")
        assert node_of(process, at) == node
        process.run_on(node=node, cpu=cpu)
        with pytest.raises(ValueError, match="belongs to node"):
            process.run_on(node=(node + 1) % 3, cpu=cpu)


def test_children_inherit_it(machine, process):
    process.run_on(node=2)
    child = process.fork()
    at = child.mmap(None, P, RW, ANON)
    child.write(at, b"x")
    assert node_of(child, at) == 2
    child.run_on(node=1)
    at = process.mmap(None, P, RW, ANON)
    process.write(at, b"x")
    assert node_of(process, at) == 2


@pytest.mark.parametrize("arguments", [{"node": 3}, {"node": -1}, {"cpu": 99999}, {"cpu": -1}])
def test_no_such_place(process, arguments):
    process.run_on(node=1)
    for call in (process.run_on, process.on):
        with pytest.raises(ValueError, match="no "):
            call(**arguments)
    at = process.mmap(None, P, RW, ANON)
    process.write(at, b"x")
    assert node_of(process, at) == 1            # as before


@pytest.mark.parametrize("arguments", [{"node": "1"}, {"cpu": 0.5}])
def test_wrong_types(process, arguments):
    with pytest.raises(TypeError):
        process.run_on(**arguments)


def test_an_exited_process_runs_nowhere(machine, process):
    process.exit()
    with pytest.raises(ProcessLookupError):
        process.run_on(node=0)
    with pytest.raises(ProcessLookupError):
        process.on(node=0)


def test_on_pins_the_thread_and_puts_all_back(machine, process):
    process.run_on(node=2)
    allowed = os.sched_getaffinity(0)
    for node in machine.nodes:
        with process.on(node=node.id) as cpu:
            assert os.sched_getaffinity(0) == {cpu}
            assert not node.cpus or cpu in node.cpus
            at = process.mmap(None, 2 * P, RW, ANON)
            process.write(at, b"x")
            assert node_of(process, at) == node.id
            view = process.view(at + P, P)
            view[0] = 1                         # raw: from the node of the CPU itself
            assert node_of(process, at + P) == node_of_cpu(machine, cpu)
        assert os.sched_getaffinity(0) == allowed
    at = process.mmap(None, P, RW, ANON)
    process.write(at, b"x")
    assert node_of(process, at) == 2


def test_on_can_be_nested_and_left_by_an_error(machine, process):
    allowed = os.sched_getaffinity(0)
    at = process.mmap(None, 8 * P, RW, ANON)
    with process.on(node=0):
        with pytest.raises(ZeroDivisionError), process.on(node=1):
            process.write(at, b"x")
            raise ZeroDivisionError
        process.write(at + P, b"x")
    assert [node_of(process, at + i * P) for i in range(2)] == [1, 0]
    assert os.sched_getaffinity(0) == allowed


def test_on_outlives_its_process(machine, process):
    allowed = os.sched_getaffinity(0)
    with process.on(node=0):
        process.exit()
    assert os.sched_getaffinity(0) == allowed


def test_on_puts_all_back_before_a_forbidden_access_is_raised(machine, process):
    process.run_on(node=0)
    view = process.view(process.mmap(None, P, PROT_READ, ANON), P)
    seen = []

    def store():                            # not in the main thread, which is interrupted
        allowed = os.sched_getaffinity(0)
        try:
            with process.on(node=2):
                view[0] = 1
        except rm.SegmentationFault:
            seen.append(os.sched_getaffinity(0) == allowed)

    thread = threading.Thread(target=store)
    thread.start()
    thread.join()
    assert seen == [True]
    at = process.mmap(None, P, RW, ANON)
    process.write(at, b"x")
    assert node_of(process, at) == 0


def test_on_puts_all_back_when_a_forbidden_access_interrupts_its_end(machine, process):
    process.run_on(node=0)
    allowed = os.sched_getaffinity(0)
    view = process.view(process.mmap(None, P, PROT_READ, ANON), P)
    with pytest.raises(rm.SegmentationFault), process.on(node=2):
        view[0] = 1                         # the interpreter's next check is in __exit__
    assert os.sched_getaffinity(0) == allowed
    at = process.mmap(None, P, RW, ANON)
    process.write(at, b"x")
    assert node_of(process, at) == 0


@pytest.mark.parametrize("first_leaves_first", [True, False])
def test_on_in_several_threads(machine, process, first_leaves_first):
    """Whoever leaves last, the process goes back to where it was."""
    process.run_on(node=0)
    inside, leave = threading.Event(), threading.Event()
    seen = []

    def other(on):
        before = os.sched_getaffinity(0)
        with on:
            inside.set()
            leave.wait()
        seen.append(os.sched_getaffinity(0) == before)

    def node_now():
        at = process.mmap(None, P, RW, ANON)
        process.write(at, b"x")
        return node_of(process, at)

    allowed = os.sched_getaffinity(0)
    thread = threading.Thread(target=other, args=(process.on(node=2),))
    with process.on(node=1):
        thread.start()
        inside.wait()
        assert node_now() == 2
        if not first_leaves_first:
            leave.set()
            thread.join()
            assert node_now() == 1
    assert os.sched_getaffinity(0) == allowed
    assert node_now() == (2 if first_leaves_first else 0)
    leave.set()
    thread.join()
    assert node_now() == 0 and seen == [True]


def test_on_is_left_once(machine, process):
    """What is left again, or was never entered, has nothing to put back."""
    allowed = os.sched_getaffinity(0)
    process.run_on(node=0)
    on = process.on(node=1)
    on.leave()
    with process.on(node=2):
        inner = os.sched_getaffinity(0)
        with on:
            pass
        on.leave()
        on.__exit__(None, None, None)
        assert os.sched_getaffinity(0) == inner
        at = process.mmap(None, P, RW, ANON)
        process.write(at, b"x")
        assert node_of(process, at) == 2
    assert os.sched_getaffinity(0) == allowed


def test_on_is_entered_once_at_a_time(machine, process):
    allowed = os.sched_getaffinity(0)
    process.run_on(node=0)
    on = process.on(node=1)
    with on as cpu:
        with pytest.raises(RuntimeError, match="in use"), on:
            pytest.fail("entered")
        assert os.sched_getaffinity(0) == {cpu}     # the block that it is in use for goes on
        at = process.mmap(None, 2 * P, RW, ANON)
        process.write(at, b"x")
        assert node_of(process, at) == 1
    assert os.sched_getaffinity(0) == allowed
    process.write(at + P, b"x")
    assert node_of(process, at + P) == 0
    with on:                                        # one block after the other
        assert len(os.sched_getaffinity(0)) == 1
    assert os.sched_getaffinity(0) == allowed


class Interrupt(BaseException):
    """As KeyboardInterrupt, which would end pytest."""


def test_on_puts_all_back_whenever_a_signal_comes(machine, process, soak_factor):
    def interrupt(signum, frame):
        raise Interrupt

    process.run_on(node=0)
    allowed = os.sched_getaffinity(0)
    rng = random.Random(1)
    interrupted = entered = 0
    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        for _ in range(int(2000 * soak_factor)):
            try:
                try:
                    signal.setitimer(signal.ITIMER_REAL, rng.randrange(1, 150) / 1e6)
                    with process.on(node=1):
                        entered += 1
                finally:
                    signal.setitimer(signal.ITIMER_REAL, 0)
            except Interrupt:
                interrupted += 1
            assert os.sched_getaffinity(0) == allowed
            assert process._node == 0
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert interrupted and entered


def test_on_needs_a_place(process):
    with pytest.raises(ValueError, match="which node or CPU"):
        process.on()


def test_on_says_what_keeps_it_away(monkeypatch, machine, process):
    allowed = os.sched_getaffinity(0)
    process.run_on(node=2)

    def cpuset(pid, cpus, really=os.sched_setaffinity):
        if cpus != allowed:
            raise OSError(errno.EINVAL, "Invalid argument")
        really(pid, cpus)

    monkeypatch.setattr(os, "sched_setaffinity", cpuset)
    with pytest.raises(rm.HostError, match="cpuset"), process.on(node=0):
        pass
    at = process.mmap(None, P, RW, ANON)
    process.write(at, b"x")
    assert node_of(process, at) == 2


# ---- copies -----------------------------------------------------------------

@pytest.mark.parametrize(("where", "node"), [("policy", 2), ("local", 2), ("source", 1)])
def test_where_copies_go(machine, process, where, node):
    process.run_on(node=1)
    at = process.mmap(None, 2 * P, RW, ANON)
    process.fill(at, 2 * P, 7)
    child = process.fork()
    child.run_on(node=2)
    machine.cow_placement = where
    assert machine.cow_placement == where
    child.write(at, b"x")
    assert node_of(child, at) == node
    assert process.read(at, 1) == b"\7"
    assert machine.fault_costs()["cow", 0, 2, node].count == 1
    child.write(child.mmap(None, P, RW, ANON), b"x")    # of new memory it says nothing
    assert machine.fault_costs()["anon", 0, 2, 2].count == 1


def test_where_copies_go_is_linuxs_at_first(machine):
    assert machine.cow_placement == "policy"
    for wrong, error in (("parent", ValueError), (1, TypeError), (None, TypeError)):
        with pytest.raises(error, match="cow_placement"):
            machine.cow_placement = wrong
    machine.cow_placement = "source"                    # before there is any process
    parent = machine.spawn(node=2)
    at = parent.mmap(None, P, RW, ANON)
    parent.write(at, b"x")
    child = parent.fork()
    child.run_on(node=0)
    child.write(at, b"y")
    assert node_of(child, at) == 2
