"""A random mix of operations over many caches, from one and two threads, against a model."""

from __future__ import annotations

import queue
import random
import threading
from concurrent.futures import ThreadPoolExecutor, wait

import numpy as np
import pytest

import realmem as rm
from realmem import GFP, GFP_KERNEL, SLAB, AllocatorError
from realmem._bench.churn import CONSTRUCTED_SIZE, CONSTRUCTOR, Churn

OPERATIONS = 200_000          # of the model in Python
MILLION = 1_000_000           # ... of the compiled one


class Model:
    """What is live, and what it was filled with, in one thread."""

    def __init__(self, machine, caches, seed, alone=True):
        self.machine = machine
        self.caches = caches
        self.random = random.Random(seed)
        self.live = []              # (addr, size, tag, how it is freed)
        self.alone = alone          # nobody else allocates what this one freed
        self.dead = []

    def tag(self, addr, size, free):
        tag = self.random.randrange(256)
        view = self.machine.view(addr, size)
        view[0] = view[size - 1] = tag
        self.live.append((addr, size, tag, free))

    def check(self, entry):
        addr, size, tag, _free = entry
        view = self.machine.view(addr, size)
        assert view[0] == tag and view[size - 1] == tag, hex(addr)

    def allocate(self):
        chance = self.random.random()
        if chance < 0.5:
            cache = self.random.choice(self.caches)
            self.tag(cache.alloc(), cache.object_size, cache.free)
        elif chance < 0.8:
            size = min(1 + int(self.random.expovariate(1 / 300)), 9000)
            self.tag(self.machine.kmalloc(size), size, self.machine.kfree)
        elif chance < 0.9:
            cache = self.random.choice(self.caches)
            for addr in cache.alloc_bulk(self.random.randrange(1, 40)).tolist():
                self.tag(addr, cache.object_size, cache.free)
        else:
            size = self.random.randrange(1, 2000)
            addr = self.machine.kzalloc(size, GFP_KERNEL)
            assert not any(self.machine.view(addr, size))
            self.tag(addr, size, self.machine.kfree)

    def free(self, entry):
        self.check(entry)
        entry[3](entry[0])

    def free_one(self):
        at = self.random.randrange(len(self.live))
        self.live[at], self.live[-1] = self.live[-1], self.live[at]
        entry = self.live.pop()
        self.free(entry)
        self.dead = [entry]

    def misuse(self):
        """An address that is not live must be refused."""
        addr, _size, _tag, free = self.random.choice(self.live)
        wrong = addr + self.random.choice((1, 4, -1))
        with pytest.raises(AllocatorError):
            free(wrong)
        if self.alone and self.dead and self.dead[-1][0] not in {entry[0] for entry in self.live}:
            addr, _size, _tag, free = self.dead.pop()
            with pytest.raises(AllocatorError):
                free(addr)

    def step(self, most):
        if not self.live or (len(self.live) < most and self.random.random() < 0.52):
            self.allocate()
        elif self.random.random() < 0.001:
            self.misuse()
        else:
            self.free_one()


def make_caches(machine):
    caches = [machine.kmem_cache_create(f"model-{size}", size, flags=SLAB.NO_MERGE)
              for size in (8, 24, 64, 200, 700, 2000, 4096)]
    caches.append(machine.kmem_cache_create("model-state", 96, flags=SLAB.TYPESAFE_BY_RCU))
    caches.append(machine.kmem_cache_create("model-line", 40, flags=SLAB.HWCACHE_ALIGN))
    return caches


def finish(machine, caches):
    machine.check()
    for cache in machine.kmem_caches.values():
        cache.shrink()
        assert cache.num_slabs == 0, cache.name
    for cache in caches:
        cache.destroy()
    machine.drain_all_pages()
    machine.check()


@pytest.mark.parametrize("nodes", [1, 2])
def test_one_thread(nodes, soak_factor):
    with rm.Machine(nodes=nodes, memory="128M") as machine:
        caches = make_caches(machine)
        model = Model(machine, caches, seed=nodes)
        for number in range(int(OPERATIONS * soak_factor) // (4 * nodes)):
            model.step(4000)
            if number % 5000 == 0:
                machine.check()
            if number % 7001 == 0:
                model.random.choice(caches).shrink()
        for entry in model.live:
            model.free(entry)
        finish(machine, caches)


@pytest.mark.parametrize("nodes", [1, 2])
def test_two_threads_that_free_for_each_other(nodes, soak_factor):
    """Each hands some of its objects to the other, while the books are checked now and then."""
    with rm.Machine(nodes=nodes, memory="128M") as machine:
        caches = make_caches(machine)
        posts = [queue.SimpleQueue(), queue.SimpleQueue()]
        failures = []
        steps = int(OPERATIONS * soak_factor) // (8 * nodes)

        def work(index):
            model = Model(machine, caches, seed=index, alone=False)
            try:
                for number in range(steps):
                    model.step(2000)
                    if number % 3 == 0 and model.live:
                        posts[1 - index].put(model.live.pop())
                    if number % 3 == 1:
                        for _ in range(posts[index].qsize()):
                            model.free(posts[index].get())
                    if number % 5003 == 5002:
                        model.random.choice(caches).shrink()
                for entry in model.live:
                    model.free(entry)
            except BaseException as why:
                failures.append(why)

        threads = [threading.Thread(target=work, args=(index,)) for index in (0, 1)]
        for thread in threads:
            thread.start()
        while any(thread.is_alive() for thread in threads):
            machine.check()
            threads[0].join(0.2)
        for thread in threads:
            thread.join()
        assert not failures, failures
        for post in posts:
            while not post.empty():
                entry = post.get()
                entry[3](entry[0])
        finish(machine, caches)


# ---- a million, compiled ----


def check_live(machine, caches, churn):
    """What the model says is live: apart, in memory, of the right cache, and held there."""
    live = np.array(churn.live(), dtype=np.int64)
    at, size, which = live[np.argsort(live[:, 0])].T
    assert (at[:-1] + size[:-1] <= at[1:]).all()
    assert at[0] >= machine.va(0)
    assert churn.held() == [int((which == i).sum()) for i in range(len(caches))]
    for i, cache in enumerate(caches):
        mine = at[which == i]
        assert (size[which == i] == cache.object_size).all()
        assert (mine % cache.align == 0).all()
        assert {machine._slab.core.name_of(int(one)) for one in mine[:50]} <= {cache.name}
    machine.check()


@pytest.mark.parametrize(("threads", "nodes"), [(1, 1), (2, 1), (1, 2), (2, 2)])
def test_a_million_operations(threads, nodes, soak_factor):
    """
    Every object is filled and checked from end to end, and marked in a map of all memory.

    With two threads a fifth of the frees are of what the other one allocated.
    """
    rounds = 4
    with rm.Machine(nodes=nodes, memory="96M") as machine:
        caches = make_caches(machine)
        caches.append(machine.kmem_cache_create("model-made", CONSTRUCTED_SIZE, ctor=CONSTRUCTOR))
        machine.drain_all_pages()
        free = sum(node.free_pages for node in machine.nodes)
        churn = Churn(caches, 8000 // threads, seed=threads)
        steps = int(MILLION * soak_factor) // rounds // threads
        for number in range(rounds):
            with ThreadPoolExecutor(threads) as pool:
                work = [pool.submit(churn.work, index, steps, threads)
                        for index in range(threads)]
                while any(not one.done() for one in work):
                    machine.check()             # in the midst of it
                    caches[number].shrink()
                    wait(work, timeout=0.1)
                for one in work:
                    one.result()
            check_live(machine, caches, churn)
        assert threads == 1 or churn.crossed > MILLION // 50
        churn.free_all()
        assert churn.held() == [0] * len(caches)
        finish(machine, caches)
        assert sum(node.free_pages for node in machine.nodes) == free


@pytest.mark.parametrize("harm", ["written to", "freed"])
def test_the_model_notices(harm):
    with rm.Machine(nodes=1, memory="32M") as machine:
        caches = make_caches(machine)
        churn = Churn(caches, 1000, seed=1)
        churn.work(0, 5000, 1)
        for addr, _size, which in churn.live()[:100]:
            if harm == "written to":
                machine.view(addr, 1)[0] ^= 1
            elif which >= 0:
                caches[which].free(addr)
        with pytest.raises(AssertionError, match=r"changed|overlaps"):
            churn.work(0, 100_000, 1)


# ---- failures on request ----


def test_every_slab_failure_is_survived():
    with rm.Machine(nodes=1, memory="32M") as machine:
        cache = machine.kmem_cache_create("failing", 64)
        held = cache.alloc_bulk(10)
        uses = {
            "alloc": lambda: cache.alloc(), "node": lambda: cache.alloc(node=0),
            "bulk": lambda: cache.alloc_bulk(100),
            "zero": lambda: cache.alloc(GFP_KERNEL | GFP.ZERO),
            "kmalloc": lambda: machine.kmalloc(100), "kcalloc": lambda: machine.kcalloc(3, 100),
            "kmalloc_node": lambda: machine.kmalloc_node(100, GFP_KERNEL, 0),
        }
        for name, use in uses.items():
            for nth in (1, 2):
                with machine.inject("slab", nth=nth) as point:
                    if nth == 2:
                        use()
                    with pytest.raises(rm.OutOfMemory):
                        use()
                    machine.check()
                    assert point.failures == 1, name
            use()
        grown = machine.kmalloc(50)
        with machine.inject("slab", nth=1), pytest.raises(rm.OutOfMemory):
            machine.krealloc(grown, 5000)
        assert machine.ksize(grown) == 64
        cache.free_bulk(held)
        machine.check()


def test_no_pages_for_slabs():
    with rm.Machine(nodes=1, memory="32M") as machine:
        cache = machine.kmem_cache_create("starved", 1024, flags=SLAB.NO_MERGE)
        made = machine.kmem_cache_create("made", 64, ctor=lambda view: None)
        with machine.inject("page_alloc", probability=1):
            for use in (cache.alloc, lambda: cache.alloc_bulk(100), made.alloc,
                        lambda: machine.kmalloc(64), lambda: machine.kmalloc(100_000)):
                with pytest.raises(rm.OutOfMemory):
                    use()
            machine.check()
        assert cache.num_slabs == made.num_slabs == 0
        cache.free(cache.alloc())
        # The order that wastes little is not to be had: one object a slab will do.
        with machine.inject("page_alloc", nth=1):
            cache.shrink()
            addr = cache.alloc()
        assert cache.num_objs == 4
        cache.free(addr)
        cache.shrink()
        assert cache.num_slabs == 0
        machine.check()


def test_objects_at_hand_are_called_in_before_pages_run_out():
    with rm.Machine(nodes=1, memory="16M") as machine:
        cache = machine.kmem_cache_create("hoard", 4096, flags=SLAB.NO_MERGE)
        cache.free_bulk(cache.alloc_bulk(500))
        assert cache.num_slabs >= 10
        pages = []
        with pytest.raises(rm.OutOfMemory):
            while True:
                pages.append(machine.get_free_pages(GFP_KERNEL, 0))
        assert cache.num_slabs == 0
        for page in pages:
            machine.free_page(page)
        machine.check()
