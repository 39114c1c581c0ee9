"""Relatives store to the same pages from threads while others fork, read, break and exit."""

from __future__ import annotations

import pytest

pytestmark = pytest.mark.storm


@pytest.mark.parametrize("debug", [0, 1])
@pytest.mark.parametrize("block", [False, True], ids=["pages", "blocks"])
@pytest.mark.parametrize("pages, options", [
    (96, {"memory": "64M"}),
    (1000, {"memory": "5M", "swap": 64 << 20}),     # a third of what they and their copies take
], ids=["", "swapping"])
def test_parent_and_child_store_while_others_come_and_go(child, block, debug, pages, options,
                                                         soak_factor) -> None:
    """Each finds its own sequence numbers, and nobody else's, whoever gets which frame."""
    child(
        f"""
    import random, time
    from realmem._bench.fault_loops import stop_storm, storm

    n, at = {pages}, (1 << 32) + 3 * PAGE
    with one_process(window="1G", debug={debug}, **{options!r}) as (machine, p):
        p.mmap(at, n * PAGE, RW, ANON | MAP_FIXED)
        before = free_pages(machine)
        if {block}:
            machine.thp.set_order(4, "always")
        p.touch(at, n * PAGE, write=True)
        c = p.fork()
        family = [p, c]
        results, snapshots = {{}}, []
        stop_storm(False)
        workers = [
            threading.Thread(target=lambda w=w, q=q: results.update(
                {{w: storm(q.host_address(at), n, w)}}))
            for w, q in enumerate([p, c, p])
        ]
        for t in workers: t.start()
        rng, turns = random.Random(7), 0

        def word(q, w):
            data = np.frombuffer(q.read(at, n * PAGE), dtype=np.uint64).reshape(n, 512)
            return data[:, w]

        def part_from(g):
            # What it read once it always reads, until it stores itself.
            first = g.read(at, n * PAGE)
            i = rng.randrange(n)
            if rng.random() < 0.5:
                array(g, at + i * PAGE, PAGE)[77] = turns + 1
            else:
                g.write(at + i * PAGE + 77 * 8, (turns + 1).to_bytes(8, "little"))
            again = bytearray(g.read(at, n * PAGE))
            assert int.from_bytes(again[i * PAGE + 616 : i * PAGE + 624], "little") == turns + 1
            again[i * PAGE + 616 : i * PAGE + 624] = first[i * PAGE + 616 : i * PAGE + 624]
            assert first == again

        try:
            deadline = time.monotonic() + {1.5 * soak_factor}
            while time.monotonic() < deadline or turns < 12:
                turns += 1
                g = rng.choice(family).fork()
                what = rng.randrange(4)
                if what == 0:
                    part_from(g)
                elif what == 1:
                    assert g.read(at, n * PAGE) == g.read(at, n * PAGE)
                elif what == 2:
                    h = g.fork()
                    g.exit()
                    if rng.random() < 0.5:
                        part_from(h)
                    h.exit()
                    continue
                else:
                    q, i = rng.choice(family), rng.randrange(n)
                    q.mm.core.flush(at + i * PAGE, at + min(i + 20, n) * PAGE)
                    time.sleep(0.002)
                g.exit()
        finally:
            stop_storm()
            for t in workers: t.join()
        assert turns > 3
        assert [results[w][0] for w in range(3)] == [0, 0, 0], results
        for w, (mine, other) in enumerate([(p, c), (c, p), (p, c)]):
            assert (word(mine, w) == results[w][1]).all() and results[w][1] > 3, results
            assert (word(other, w) == 0).all()
        assert machine.hoststat["donation"] > 10, machine.hoststat
        machine.check()
        c.exit()
        p.munmap(at, n * PAGE)
        machine.check()
        assert p.rss == 0
        while p.children:
            p.wait()
        comes_back(machine, before)
    """
    )
