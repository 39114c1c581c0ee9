"""Machines that a child inherits over os.fork(): of no use to it, and not harmed by it."""

from __future__ import annotations

import pytest


def test_a_child_cannot_use_the_machine(python):
    child = python("""
import os, sys, traceback
import realmem as rm
from realmem import GFP
machine = rm.Machine(2, "4M", page_owner=True)
page = machine.alloc_pages(GFP.KERNEL, 0)
pages = machine.alloc_pages_bulk(GFP.KERNEL, 4)
view = machine.view(page.address, 4096)
view[:4] = b"mine"
zone = machine.nodes[0].zones[0]
before = zone.free_area
context = machine.atomic_context()
pid = os.fork()
if pid == 0:
    status = 1
    try:
        calls = [
            lambda: machine.alloc_pages(GFP.KERNEL, 0),
            lambda: machine.alloc_pages_node(0, GFP.KERNEL, 0),
            lambda: machine.alloc_pages_bulk(GFP.KERNEL, 4),
            lambda: machine.alloc_pages_exact(4096, GFP.KERNEL),
            lambda: machine.get_free_pages(GFP.KERNEL, 0),
            lambda: machine.get_zeroed_page(GFP.KERNEL),
            lambda: machine.free_pages(page, 0),
            lambda: machine.free_page(page),
            lambda: machine.free_pages_bulk(pages),
            machine.drain_all_pages, machine.check, machine.show_mem,
            lambda: machine.view(machine.va(0), 1),
            lambda: machine.va(0), lambda: machine.pfn_to_page(0),
            lambda: machine.vmstat["pgfree"], lambda: machine.procfs["/proc/buddyinfo"],
            lambda: page.refcount, lambda: page.address, lambda: page.node, page.get, page.put,
            lambda: zone.free_pages, lambda: machine.nodes[1].stat,
            context.__enter__, machine.__enter__,
            lambda: machine.sysctl.__setitem__("vm.min_free_kbytes", 1000),
        ]
        for i, call in enumerate(calls):
            try:
                call()
            except ValueError as error:
                assert "os.fork" in str(error), (i, error)
            else:
                raise AssertionError(i)
        machine.close()
        # A machine of its own works, with threads and without.
        import threading
        with rm.Machine(2, "4M") as own:
            def work():
                for order in (0, 3, 5):
                    own.free_pages(own.alloc_pages(GFP.KERNEL, order), order)
            threads = [threading.Thread(target=work) for _ in range(3)]
            for thread in threads: thread.start()
            work()
            own.drain_all_pages()
            for thread in threads: thread.join()
            own.check()
        del machine, page, pages, zone
        status = 0
    except BaseException:
        traceback.print_exc()
    sys.stderr.flush()
    os._exit(status)
assert os.waitpid(pid, 0)[1] == 0
machine.check()
assert bytes(view[:4]) == b"mine" and zone.free_area == before and page.refcount == 1
view.release()
machine.free_page(page); machine.free_pages_bulk(pages)
machine.check(); machine.close()
print("well")
""")
    assert child.stdout == "well\n", child.stderr


def test_a_child_that_exits_normally_harms_nothing(python):
    """Finalizers run in the child; the parent's memory is not theirs."""
    child = python("""
import os, sys
import realmem as rm
machine = rm.Machine(1, "4M")
page = machine.alloc_pages(rm.GFP.KERNEL, 0)
machine.view(page.address, 4)[:] = b"mine"
pid = os.fork()
if pid == 0:
    sys.exit(0)
assert os.waitpid(pid, 0)[1] == 0
for i in range(5):
    if os.fork() == 0:
        with machine_context if i > 9 else rm.Machine(1, "4M") as own:
            own.alloc_pages(rm.GFP.KERNEL, 0)
        machine.close()
        sys.exit(0)
    assert os.wait()[1] == 0
machine.check()
assert bytes(machine.view(page.address, 4)) == b"mine"
machine.close()
print("well")
""")
    assert child.stdout == "well\n", child.stderr


@pytest.mark.crash
def test_fork_while_threads_allocate_and_end(python):
    """No lock that another thread held at the fork is left locked in the child."""
    child = python("""
import os, sys, threading, signal
import realmem as rm
from realmem import GFP
machine = rm.Machine(1, "8M")
stop = False
def short():
    machine.free_page(machine.alloc_pages(GFP.KERNEL, 0))
def spawn():
    while not stop:
        threads = [threading.Thread(target=short) for _ in range(4)]
        for thread in threads: thread.start()
        for thread in threads: thread.join()
workers = [threading.Thread(target=spawn) for _ in range(2)]
for worker in workers: worker.start()
for turn in range(60):
    pid = os.fork()
    if pid == 0:
        signal.alarm(60)
        with rm.Machine(1, "4M") as own:
            own.free_page(own.alloc_pages(GFP.KERNEL, 0))
            own.drain_all_pages()
        os._exit(0)
    assert os.waitpid(pid, 0)[1] == 0, turn
stop = True
for worker in workers: worker.join()
machine.check()
print("well")
""")
    assert child.stdout == "well\n", child.stderr
