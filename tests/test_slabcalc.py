"""The geometry of caches: worked figures, and every cache of the running kernel."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from realmem import slabcalc
from realmem.host import present_cpus
from realmem.layout import PAGE_SIZE, SLAB
from realmem.slabcalc import KMALLOC_SIZES, find_mergeable, geometry, kmalloc_index

SYSFS = Path("/sys/kernel/slab")


def order_and_objects(size, nr_cpus):
    found = geometry(size, nr_cpus=nr_cpus)
    return found.order, found.objs_per_slab


# ---- worked figures ----


@pytest.mark.conformance("SL-02")
@pytest.mark.parametrize(("align", "size"), [(0, 24), (64, 64), (16, 32), (4096, 4096)])
def test_stride(align, size):
    assert geometry(20, align, nr_cpus=2).size == size


@pytest.mark.conformance("SL-05")
@pytest.mark.parametrize("how", [{"ctor": True}, {"flags": SLAB.TYPESAFE_BY_RCU}])
def test_what_must_keep_its_state_has_its_free_pointer_outside(how):
    plain = geometry(64, nr_cpus=2, **how)
    assert (plain.size, plain.offset, plain.objs_per_slab) == (72, 64, 56)
    flags = how.get("flags", SLAB(0)) | SLAB.HWCACHE_ALIGN
    assert geometry(64, flags=flags, ctor="ctor" in how, nr_cpus=2).size == 128
    inside = geometry(64, nr_cpus=2, freeptr_offset=8, **how)
    assert (inside.size, inside.offset) == (64, 8)


@pytest.mark.conformance("SL-07")
def test_four_cpus():
    wanted = {64: (0, 64), 96: (0, 42), 128: (0, 32), 192: (0, 21), 256: (0, 16), 512: (1, 16),
              1024: (2, 16), 2048: (3, 16), 4096: (3, 8), 8192: (3, 4)}
    assert {size: order_and_objects(size, 4) for size in wanted} == wanted


@pytest.mark.conformance("SL-08")
def test_eight_cpus():
    wanted = {192: (0, 21), 256: (1, 32), 512: (2, 32), 1024: (3, 32), 2048: (3, 16),
              4096: (3, 8)}
    assert {size: order_and_objects(size, 8) for size in wanted} == wanted


@pytest.mark.conformance("SL-09")
@pytest.mark.parametrize("nr_cpus", [16, 64])
def test_sixteen_cpus_and_more(nr_cpus):
    wanted = {256: (1, 32), 512: (2, 32), 1024: (3, 32), 2048: (3, 16), 4096: (3, 8)}
    if nr_cpus == 16:
        wanted |= {128: (0, 32), 192: (1, 42)}
    assert {size: order_and_objects(size, nr_cpus) for size in wanted} == wanted


@pytest.mark.conformance("SL-10", "SL-11", "SL-12")
def test_odd_strides_on_eight_cpus():
    wanted = {24: (0, 170), 40: (0, 102), 72: (0, 56), 104: (0, 39), 184: (0, 22), 200: (0, 20),
              264: (1, 31), 320: (1, 25), 448: (2, 36), 632: (2, 25), 704: (2, 23),
              1088: (3, 30), 1344: (3, 24), 2304: (3, 14), 3072: (3, 10), 5504: (3, 5),
              9000: (3, 3), 33000: (4, 1), 12000: (3, 2)}
    assert {size: order_and_objects(size, 8) for size in wanted} == wanted


@pytest.mark.conformance("SL-14")
@pytest.mark.parametrize(("size", "kept"), [(64, 5), (1024, 5), (4096, 6), (8192, 6), (65536, 8)])
def test_min_partial(size, kept):
    assert geometry(size, nr_cpus=4).min_partial == kept


@pytest.mark.conformance("SL-16")
@pytest.mark.parametrize(("size", "objects", "slabs"), [(64, 120, 4), (192, 120, 12),
                                                        (256, 52, 7), (1024, 24, 3), (4096, 6, 2)])
def test_cpu_partial(size, objects, slabs):
    found = geometry(size, nr_cpus=2)
    assert found.cpu_partial == objects
    assert -(-2 * objects // found.objs_per_slab) == slabs


@pytest.mark.parametrize(
    ("flags", "size", "offset"),
    [
        (SLAB.RED_ZONE, 64 + 8 + 8 + 8, 32),                # zone, zone behind, zone before
        (SLAB.POISON, 64 + 8, 64),
        (SLAB.STORE_USER, 64 + 64, 32),
        (SLAB.RED_ZONE | SLAB.POISON | SLAB.STORE_USER, 64 + 8 + 8 + 64 + 16, 72),
        (SLAB.CONSISTENCY_CHECKS, 64, 32),
    ],
)
def test_what_debugging_adds(flags, size, offset):
    found = geometry(64, flags=flags, nr_cpus=2)
    assert (found.size, found.offset) == (size, offset)


# ---- the running kernel ----


@dataclass(frozen=True)
class Cache:
    name: str
    object_size: int
    align: int
    flags: SLAB
    ctor: bool
    facts: dict[str, int]


def host_caches():
    """Read every cache of the running kernel, merged ones once."""
    found = []
    for path in sorted({path.resolve() for path in SYSFS.iterdir()}):
        def read(name, path=path):
            return (path / name).read_text().strip()

        try:
            flags = SLAB(0)
            for name, flag in (("hwcache_align", SLAB.HWCACHE_ALIGN),
                               ("destroy_by_rcu", SLAB.TYPESAFE_BY_RCU),
                               ("reclaim_account", SLAB.RECLAIM_ACCOUNT),
                               ("sanity_checks", SLAB.CONSISTENCY_CHECKS),
                               ("red_zone", SLAB.RED_ZONE), ("poison", SLAB.POISON),
                               ("store_user", SLAB.STORE_USER)):
                if read(name) == "1":
                    flags |= flag
            facts = {name: int(read(name)) for name in
                     ("slab_size", "align", "order", "objs_per_slab", "min_partial",
                      "cpu_partial")}
            found.append(Cache(path.name, int(read("object_size")), facts["align"], flags,
                               bool(read("ctor")), facts))
        except (FileNotFoundError, PermissionError):
            continue
    return found


def facts_of(found):
    return {"slab_size": found.size, "align": found.align, "order": found.order,
            "objs_per_slab": found.objs_per_slab, "min_partial": found.min_partial,
            "cpu_partial": found.cpu_partial}


@pytest.fixture(scope="module")
def caches():
    try:
        found = host_caches()
    except OSError as why:
        pytest.skip(f"no oracle: {why}")
    if not found:
        pytest.skip("no oracle: /sys/kernel/slab may not be read")
    return found


@pytest.mark.conformance("SL-04")
def test_every_cache_of_the_running_kernel(caches):
    nr_cpus = len(present_cpus())
    wrong = []
    for cache in caches:
        # Where a cache names its free pointer's place is not shown: either may be.
        choices = [None]
        if cache.ctor or cache.flags & SLAB.TYPESAFE_BY_RCU:
            choices.append(0)
        ours = [facts_of(geometry(cache.object_size, cache.align, cache.flags, nr_cpus=nr_cpus,
                                  ctor=cache.ctor, freeptr_offset=where)) for where in choices]
        if cache.facts not in ours:
            wrong.append((cache, ours))
    assert not wrong
    assert len(caches) > 50


def test_alignment_is_worked_out_from_flags(caches):
    """Caches that ask for cache lines and nothing else: align follows from the flag."""
    lines = [cache for cache in caches if cache.flags & SLAB.HWCACHE_ALIGN and cache.align <= 64]
    assert lines
    for cache in lines:
        assert geometry(cache.object_size, 0, cache.flags, nr_cpus=2).align == cache.align


def test_generic_caches_of_the_running_kernel(caches):
    generic = {cache.name: cache for cache in caches if "kmalloc-" in cache.name}
    if not generic:
        pytest.skip("no oracle: kmalloc caches are merged here")
    for kind in slabcalc.KMALLOC_TYPES:
        for size in KMALLOC_SIZES[1:]:
            name = slabcalc.kmalloc_name(kind, size)
            if name in generic:
                assert generic[name].object_size == size
                assert generic[name].align == max(8, slabcalc.kmalloc_align(size)), name
    assert slabcalc.kmalloc_name("", 64) in generic


# ---- properties ----


@given(st.integers(1, PAGE_SIZE << 10), st.sampled_from([0, 8, 16, 64, 256, 4096]),
       st.integers(0, (1 << 13) - 1).map(SLAB), st.integers(1, 512), st.booleans())
def test_objects_lie_within_their_slab(size, align, flags, nr_cpus, ctor):
    try:
        found = geometry(size, align, flags, nr_cpus=nr_cpus, ctor=ctor)
    except ValueError:
        assert size > PAGE_SIZE << 9
        return
    assert found.size % found.align == 0 and found.align % 8 == 0 and found.align >= align
    assert found.objs_per_slab >= 1
    assert found.objs_per_slab * found.size <= PAGE_SIZE << found.order
    assert found.min_order <= found.order
    assert 0 <= found.offset <= found.size - 8 - found.red_left_pad
    assert found.offset % 8 == 0
    if ctor or flags & (SLAB.TYPESAFE_BY_RCU | SLAB.POISON):
        assert found.offset >= size
    assert found.order <= max(3, found.min_order)


@pytest.mark.conformance("KM-02")
@given(st.integers(1, slabcalc.KMALLOC_MAX_CACHE_SIZE))
def test_the_smallest_generic_cache_that_fits(size):
    chosen = KMALLOC_SIZES[kmalloc_index(size)]
    assert chosen == min(each for each in KMALLOC_SIZES if each >= size)


@pytest.mark.parametrize(("size", "rounded"), [(0, 0), (1, 8), (20, 32), (65, 96), (97, 128),
                                               (129, 192), (193, 256), (4097, 8192),
                                               (8193, 16384), (1 << 22, 1 << 22)])
def test_kmalloc_size_roundup(size, rounded):
    assert slabcalc.kmalloc_size_roundup(size) == rounded


# ---- merging ----


@dataclass(frozen=True)
class Existing:
    size: int
    flags: SLAB = slabcalc.NO_FLAGS
    mergeable: bool = True


@pytest.mark.parametrize(
    ("existing", "size", "align", "flags", "merges"),
    [
        (Existing(24), 20, 0, SLAB(0), True),
        (Existing(24), 24, 0, SLAB(0), True),
        (Existing(32), 24, 0, SLAB(0), False),              # a word or more would be lost
        (Existing(16), 24, 0, SLAB(0), False),
        (Existing(64), 64, 64, SLAB(0), True),
        (Existing(72), 65, 16, SLAB(0), False),             # alignment
        (Existing(64), 64, 0, SLAB.ACCOUNT, False),         # must be shared
        (Existing(64, SLAB.ACCOUNT), 64, 0, SLAB.ACCOUNT, True),
        (Existing(64, SLAB.HWCACHE_ALIGN), 64, 0, SLAB(0), True),
        (Existing(64), 64, 0, SLAB.NO_MERGE, False),
        (Existing(64, SLAB.POISON), 64, 0, SLAB(0), False),
        (Existing(64, mergeable=False), 64, 0, SLAB(0), False),
    ],
)
def test_merging(existing, size, align, flags, merges):
    assert find_mergeable([existing], size, align, flags) is (existing if merges else None)
