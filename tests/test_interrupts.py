"""What a signal's handler raises, wherever it comes, leaves things as they were or done."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

import pytest

import realmem as rm


class Interrupt(BaseException):
    """As KeyboardInterrupt, which would end pytest."""


def interrupted_at(nth: int, call: Callable[[], object]) -> bool:
    """Raise on the nth line that runs outside this file; False if there are not so many."""
    left = nth

    def trace(frame: FrameType, event: str, arg: Any) -> Any:
        nonlocal left
        if frame.f_code.co_filename == __file__:
            return None
        if event == "line":
            left -= 1
            if left == 0:
                raise Interrupt
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        call()
    except Interrupt:
        return True
    finally:
        sys.settrace(before)
    return False


@pytest.fixture
def machine() -> Iterator[rm.Machine]:
    with rm.Machine(nodes=1, memory="16M", window="1G") as machine:
        machine.spawn().exit()          # what is imported is imported
        yield machine
        machine.check()


def test_atomic_contexts(machine: rm.Machine) -> None:
    def use() -> None:
        with machine.atomic_context(), pytest.raises(rm.AtomicContextError):
            machine.alloc_pages(rm.GFP_KERNEL, 0)

    def pass_through() -> None:
        with machine.atomic_context():
            pass

    use()
    nth = 1
    while interrupted_at(nth, pass_through):
        machine.free_page(machine.alloc_pages(rm.GFP_KERNEL, 0))    # may sleep again
        nth += 1
    assert nth > 1


def test_exits(machine: rm.Machine) -> None:
    """A process that did not end can be ended; one that did can be waited for."""
    nth = 1
    while True:
        parent = machine.spawn()
        child = parent.fork()
        grandchild = child.fork()
        was = interrupted_at(nth, child.exit)
        if child.pid in machine.processes:
            child.exit()
        machine.check()
        assert parent.wait(child.pid) == (child.pid, 0)
        assert grandchild.parent is not child
        grandchild.exit()
        parent.exit()
        assert not machine.processes
        if not was:
            break
        nth += 1
    assert nth > 5


def test_on() -> None:
    """A block that was not entered, or was left, leaves thread and process where they were."""
    with rm.Machine(nodes=2, memory="16M", window="1G") as machine:
        process = machine.spawn(node=0)
        allowed = os.sched_getaffinity(0)

        def pass_through() -> None:
            with process.on(node=1):
                pass

        pass_through()
        nth = 1
        while interrupted_at(nth, pass_through):
            assert os.sched_getaffinity(0) == allowed
            assert [place.node for place in process._places] == [0]
            nth += 1
        assert nth > 20
