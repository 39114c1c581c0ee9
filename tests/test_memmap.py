"""Nodes, zones and struct page arrays tile physical memory whatever the sizes."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from realmem.layout import PAGE_SIZE, STRUCT_PAGE_SIZE
from realmem.memmap import LEAST_MEMORY, MAX_BLOCK, lay_out, movable_pages, parse_zones

BLOCK_PAGES = MAX_BLOCK // PAGE_SIZE

sizes = st.lists(
    st.one_of(
        st.just(0),
        st.integers(LEAST_MEMORY // PAGE_SIZE, 40_000).map(lambda pages: pages * PAGE_SIZE),
    ),
    min_size=1,
    max_size=6,
)
ends = st.tuples(st.integers(0, 20), st.integers(0, 40)).map(
    lambda pair: {"DMA": min(pair) * MAX_BLOCK, "DMA32": max(pair) * MAX_BLOCK}
)
shares = st.one_of(
    st.integers(0, 100).map(lambda percent: f"{percent}%"),
    st.integers(0, 30_000).map(lambda pages: pages * PAGE_SIZE),
)


@given(sizes=sizes, ends=ends, share=shares)
def test_zones_tile_each_node_and_hold_its_page_array(sizes, ends, share):
    zones = parse_zones({**ends, "Movable": share})
    previous_end = 0
    for size, where in zip(sizes, lay_out(sizes, zones), strict=True):
        assert where.start_pfn % BLOCK_PAGES == 0
        assert where.start_pfn >= previous_end
        previous_end = where.start_pfn + where.pages
        assert where.pages * PAGE_SIZE == size

        frames = [pfn for start, n in where.zones for pfn in range(start, start + n)]
        assert frames == list(range(where.start_pfn, previous_end))
        dma, dma32, normal, movable = where.zones
        for (start, n), end in ((dma, ends["DMA"]), (dma32, ends["DMA32"])):
            assert n == 0 or (start + n) * PAGE_SIZE <= end
        assert normal[1] == 0 or normal[0] * PAGE_SIZE >= ends["DMA32"]
        assert movable[1] == 0 or movable[0] % BLOCK_PAGES == 0

        assert where.memmap_pages * PAGE_SIZE >= where.pages * STRUCT_PAGE_SIZE
        assert (where.memmap_pages - 1) * PAGE_SIZE < where.pages * STRUCT_PAGE_SIZE
        assert where.start_pfn <= where.memmap_pfn
        assert where.memmap_pfn + where.memmap_pages <= previous_end
        assert sum(where.managed) == where.pages - where.memmap_pages
        # Kernel memory stays out of Movable as long as there is room elsewhere.
        if where.pages - movable[1] >= where.memmap_pages:
            assert where.memmap_pfn + where.memmap_pages <= previous_end - movable[1]


def test_default_zones_are_those_of_x86_64():
    (where,) = lay_out([5 << 30], parse_zones(None))
    assert [pages for _, pages in where.zones] == [4096, (4 << 18) - 4096, 1 << 18, 0]


@pytest.mark.parametrize(
    ("share", "pages", "expected"),
    [("0", 65536, 0), ("25%", 65536, 16384), ("100%", 65536, 65536), ("16M", 65536, 4096),
     ("1G", 65536, 65536), ("5M", 65536, 1024), ("0.5%", 65536, 0)],
)
def test_movable_is_a_share_from_the_top(share, pages, expected):
    assert movable_pages(share, pages) == expected


@pytest.mark.parametrize(
    ("zones", "error"),
    [
        ({"Nomal": "1G"}, ValueError),
        ({"DMA": "1M"}, ValueError),
        ({"DMA": "64M", "DMA32": "16M"}, ValueError),
        ({"Movable": "101%"}, ValueError),
        ({"Movable": "-1%"}, ValueError),
        ({"Movable": "half%"}, ValueError),
        ({"Movable": -4096}, ValueError),
        ({"DMA": 1.5}, TypeError),
        (["DMA"], TypeError),
    ],
)
def test_bad_zones_are_refused(zones, error):
    with pytest.raises(error):
        parse_zones(zones)


@pytest.mark.parametrize("size", [1, 4095, 5000, PAGE_SIZE, LEAST_MEMORY - PAGE_SIZE])
def test_impossible_sizes_are_refused(size):
    with pytest.raises(ValueError, match="memory"):
        lay_out([size], parse_zones(None))
