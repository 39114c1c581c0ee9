"""
A signal's exception at any point of a system call: the call is done, or it is not at all.

A twin process makes every call undisturbed: what it looks like before and after the call are the
two states in which the interrupted one may be found.
"""

from __future__ import annotations

import textwrap

import pytest
from whole_process import Run

TWINS = """
    import collections, random, time

    PAGES = 48
    THERE = 0x101               # present, or present and nobody may look (PROT_NONE)
    DIRTY = 0x40

    class Interrupt(BaseException):
        pass

    armed = False
    def on_alarm(*args):
        if armed:
            raise Interrupt
    signal.signal(signal.SIGALRM, on_alarm)

    def interrupted(call, after):
        # Give whether the exception came; it may come once the call has returned.
        global armed
        came = False
        try:
            try:
                armed = True
                signal.setitimer(signal.ITIMER_REAL, after)
                call()
            finally:
                armed = False
        except Interrupt:
            came = True
        armed = False
        signal.setitimer(signal.ITIMER_REAL, 0)
        return came

    def state(p, arena):
        vmas = [(v.start, v.end, v.prot, v.flags, v.locked, sorted(v.vm_flags)) for v in p.vmas]
        present, data, walk = [], [], p.mm.core.walk        # p.walk() spells each level out
        for start, end, prot, *_ in vmas:
            present.append([raw & THERE != 0 and raw & DIRTY != 0 for *_, raw in
                            (walk(at)[-1] for at in range(start, end, PAGE))])
            try:
                data.append(p.read(start, end - start) if prot & PROT_READ else None)
            except BusError as error:           # mremap made it longer than its object
                data.append((error.done, p.read(start, error.done)))
        return (vmas, present, data, p.brk(), p.mm.core.counters, len(p.children))

    def calls(rng, arena, machine):
        # A call, as a function of the process, and whether it faults pages in after it is done.
        at = arena + rng.randrange(PAGES) * PAGE
        n = rng.randint(1, 12) * PAGE
        to = arena + (PAGES + rng.randrange(PAGES)) * PAGE
        prot = rng.choice([PROT_NONE, PROT_READ, RW, RW, RW])
        fixed = ANON | MAP_FIXED
        advice = rng.choice([MADV_DONTNEED, MADV_DONTNEED, MADV_DONTFORK, MADV_DOFORK,
                             MADV_WIPEONFORK, MADV_KEEPONFORK, MADV_HUGEPAGE])
        some = [
            ("mmap", lambda p: p.mmap(at, n, prot, fixed)),
            ("mmap", lambda p: p.mmap(at, n, prot, MAP_SHARED | MAP_ANONYMOUS | MAP_FIXED)),
            ("mmap", lambda p: p.mmap(None, n, prot, ANON)),
            ("munmap", lambda p: p.munmap(at, n)),
            ("mprotect", lambda p: p.mprotect(at, n, prot)),
            ("mprotect", lambda p: p.mprotect(at, n, RW)),
            ("brk", lambda p: p.sbrk((n >> 1) if p.brk() < p.mm.start_brk + 64 * PAGE
                                     else -(n >> 1))),
            ("fork", lambda p: p.fork()),
            ("fork", lambda p: p.fork()),
            ("mremap", lambda p: p.mremap(at, PAGE, 3 * PAGE, MREMAP_MAYMOVE)),
            ("mremap", lambda p: p.mremap(at, n, n, MREMAP_MAYMOVE | MREMAP_FIXED, to)),
            ("mremap", lambda p: p.mremap(at, n, PAGE)),
            ("madvise", lambda p: p.madvise(at, n, advice)),
            ("madvise", lambda p: p.madvise(at, n, advice)),
            ("mlock", lambda p: p.mlock(at, n)),
            ("munlock", lambda p: p.munlock(at, n)),
        ]
        return rng.choice(some)

    def refused(call, p):
        # Make a call that may be refused, as any of them may; its errno.
        try:
            call(p)
        except OSError as error:
            return error.errno

    def settle(p, others):
        # Bring children to their end, each exit interrupted somewhere; the number of exits hit.
        hit = 0
        for child in list(p.children):
            if child.pid in others:
                was = interrupted(child.exit, random.random() * 400e-6)
                hit += was
                if child.pid in machine.processes:
                    assert was
                    child.vmas, child.rss       # alive, or it would say so
                    child.exit()
                raises(ProcessLookupError, lambda: child.vmas)
            else:
                child.exit()
            assert p.wait(child.pid)[0] == child.pid
        return hit

    def scribble(rng, p, q):
        # The same stores for both.
        seed = rng.random()
        for one in (p, q):
            r = random.Random(seed)
            for v in one.vmas:
                for at in range(v.start, v.end, PAGE):
                    with contextlib.suppress(BusError):
                        if v.prot & PROT_WRITE and r.random() < 0.3:
                            one.write(at + r.randrange(PAGE), bytes([r.randrange(256)]))
                        if v.prot & PROT_READ and r.random() < 0.1:
                            one.read(at, 1)

    def same(state):
        # Without which pages are there: faulting in after the call may have been cut short.
        return state[:1] + state[2:]

    globals().update({name: getattr(rm, name) for name in dir(rm) if name.isupper()})
    rng = random.Random(SEED)
    random.seed(SEED)
    points = collections.Counter()
    done = collections.Counter()
    took = collections.defaultdict(lambda: 100e-6)
    with Machine(nodes=1, memory="64M", window="1G") as machine:
        init = machine.spawn("init")
        deadline = time.monotonic() + LIMIT
        turn, unlike = 0, False
        while sum(points.values()) < POINTS and time.monotonic() < deadline:
            if turn % 200 == 0 or unlike:
                for one in ([p, q] if turn else []):
                    one.exit()
                p, q = machine.spawn("interrupted"), machine.spawn("twin")
                arena = p.mm.low + (600 << 20)
                assert q.mm.low == p.mm.low
            turn += 1
            name, call = calls(rng, arena, machine)
            before = state(p, arena)
            assert same(before) == same(state(q, arena)), turn
            begun = time.perf_counter()
            answer = refused(call, q)
            took[name] += (time.perf_counter() - begun - took[name]) * 0.1
            after = state(q, arena)
            was = interrupted(lambda: refused(call, p), rng.random() * 1.2 * took[name])
            if was:
                points[name] += 1
                now = state(p, arena)
                if same(now) == same(after):
                    done[name] += 1
                else:
                    assert now == before, (turn, name, before, now, after)
                    assert refused(call, p) == answer
            now = state(p, arena)
            assert same(now) == same(after), (turn, name, answer, was, now[0], after[0])
            # What was to be faulted in, and was not, may merge otherwise later: begin anew.
            unlike = now[1] != after[1]
            points["exit"] += settle(p, {c.pid for c in p.children})
            settle(q, ())
            scribble(rng, p, q)
            machine.check()
            assert len(machine.processes) == 3
        machine.check()
        for one in (p, q, init):
            one.exit()
        machine.check()
        assert not machine.processes and machine.hoststat["host_vmas"] == 0
    print(sum(points.values()), "points:", dict(points), "done:", dict(done), turn, "calls")
    assert sum(points.values()) >= POINTS, "the time was over before"
    wanted = {"mmap", "munmap", "mprotect", "brk", "fork", "exit",
              "mremap", "madvise", "mlock", "munlock"}
    missing = wanted - set(points)
    assert not missing, missing
"""


def run(child: Run, seed: int, points: int) -> str:
    limit = 60 + points // 50           # for a machine that is busy with other things
    head = f"SEED, POINTS, LIMIT = {seed}, {points}, {limit}\n"
    return str(child(head + textwrap.dedent(TWINS), timeout=limit + 60).stdout)


@pytest.mark.parametrize("seed", [1])
def test_each_call_is_done_or_is_not(child, seed) -> None:
    run(child, seed, 300)


@pytest.mark.slow
def test_at_ten_thousand_points(child, soak_factor) -> None:
    print(run(child, 7, int(10_000 * soak_factor)))
