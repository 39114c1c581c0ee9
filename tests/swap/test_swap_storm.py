"""Pages that change hands, and are pinned, locked, forked and freed, beside reclaim."""

from __future__ import annotations

import os
import threading
import time

import pytest

from realmem import (
    MADV_DONTNEED,
    MADV_FREE,
    MADV_PAGEOUT,
    MAP_ANONYMOUS,
    MAP_PRIVATE,
    MAP_SHARED,
    PAGE_SIZE,
    PROT_READ,
    PROT_WRITE,
)

RW, P = PROT_READ | PROT_WRITE, PAGE_SIZE
PRIVATE, SHARED = MAP_PRIVATE | MAP_ANONYMOUS, MAP_SHARED | MAP_ANONYMOUS

pytestmark = pytest.mark.storm


def all_at_once(seconds, *works):
    """Have each thread do its work again and again; the first error of any is raised."""
    deadline = time.monotonic() + seconds
    errors = []

    def body(work):
        turn = 0
        try:
            while (time.monotonic() < deadline or turn < 3) and not errors:
                work(turn)
                turn += 1
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=body, args=(work,)) for work in works]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]


def word(turn, i):
    return (turn * 1000 + i).to_bytes(8, "little")


def test_frames_that_become_another_kind_of_page(machine, p, soak_factor):
    """A frame that reclaim had in view is freed, and is shared memory's, or a table's, next."""
    n = 256

    def churn(turn):
        a = p.mmap(None, n * P, RW, PRIVATE)
        p.fill(a, n * P, turn & 255)
        p.munmap(a, n * P)
        b = p.mmap(None, n * P, RW, SHARED)
        child = p.fork()
        for i in range(n):
            p.write(b + i * P, word(turn, i))
        assert [child.read(b + i * P, 8) for i in range(n)] == [word(turn, i) for i in range(n)]
        child.exit()
        p.wait(child.pid)
        p.munmap(b, n * P)

    all_at_once(2 * soak_factor, churn, churn, lambda turn: machine.reclaim(256),
                lambda turn: machine.check())


def test_what_is_pinned_can_be_used_by_the_host(machine, p):
    """Reclaim looks at the pages and their neighbours, and leaves what the host has mapped."""
    a = p.mmap(None, 64 * P, RW, PRIVATE)
    p.fill(a, 64 * P, 1)
    source, sink = os.pipe()
    with p.pin(a, 16 * P, True) as view:
        for _ in range(6):
            machine.reclaim(1000)
            os.write(sink, b"x" * 100)
            assert os.readv(source, [memoryview(view)[3 * P:3 * P + 100]]) == 100
    os.close(source)
    os.close(sink)
    assert p.read(a + 3 * P, 101) == b"x" * 100 + b"\1"


def test_advice_and_forks_beside_reclaim(machine, p, soak_factor):
    """Generations share pages that go and come; each sees its own stores alone."""
    n = 128
    a = p.mmap(None, n * P, RW, PRIVATE)
    for i in range(n):
        p.write(a + i * P, word(0, i))

    def generations(turn):
        child = p.fork()
        child.madvise(a + turn % n * P, P, MADV_PAGEOUT)
        for i in range(turn % 3, n, 3):
            child.write(a + i * P + 8, word(turn, i))
        grandchild = child.fork()
        for i in range(n):
            mine = word(turn, i) if i % 3 == turn % 3 else bytes(8)
            assert grandchild.read(a + i * P, 16) == word(0, i) + mine
        child.madvise(a, 8 * P, MADV_DONTNEED)
        child.madvise(a + 8 * P, 8 * P, MADV_FREE)
        child.exit()
        p.wait(child.pid)
        grandchild.exit()

    def locked(turn):
        child = p.fork()
        child.mlock(a + 32 * P, 16 * P)
        assert [child.read(a + i * P, 8) for i in range(32, 48)] == [
            word(0, i) for i in range(32, 48)]
        child.munlock(a + 32 * P, 16 * P)
        child.exit()
        p.wait(child.pid)

    all_at_once(2 * soak_factor, generations, generations, locked,
                lambda turn: machine.reclaim(128), lambda turn: machine.check())


def test_areas_come_and_go_beside_accesses(machine, p, tmp_path, soak_factor):
    n = 200
    a = p.mmap(None, n * P, RW, PRIVATE)
    b = p.mmap(None, n * P, RW, SHARED)
    state = {"a": 0, "b": 0}

    def stores(at, name):
        def work(turn):
            for i in range(n):
                if turn:
                    assert p.read(at + i * P, 8) == word(turn - 1, i)
                p.write(at + i * P, word(turn, i))
            state[name] = turn
        return work

    def areas(turn):
        path = tmp_path / f"area{turn}"
        machine.swapon(path, size=8 << 20, priority=10)
        for _ in range(4):
            machine.reclaim(500)
        machine.swapoff(path)
        path.unlink()

    all_at_once(2 * soak_factor, stores(a, "a"), stores(b, "b"), areas,
                lambda turn: machine.reclaim(64))
    for at, name in ((a, "a"), (b, "b")):
        assert all(p.read(at + i * P, 8) == word(state[name], i) for i in range(n))
