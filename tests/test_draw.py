"""The picture of an address space: it fits, says what is true, and stays readable."""

from __future__ import annotations

import re
from itertools import pairwise

import pytest
from fake_process import FakeCore, FakeProcess, a_vma
from hypothesis import given
from hypothesis import strategies as st

from realmem.layout import PAGE_SIZE
from realmem.mm.draw import KernelArea, Scene, draw
from realmem.mm.draw_groups import Block, condense
from realmem.mm.draw_lines import human
from realmem.outside import SeenFromOutside

A = 0x7F0000000000


class Drawn(SeenFromOutside, FakeProcess):
    pass


def block(start, pages, perms="rw-p", label=""):
    return Block(start, start + pages * PAGE_SIZE, perms, label, pages * PAGE_SIZE)


@st.composite
def layouts(draw_from):
    blocks, at = [], draw_from(st.integers(16, 1 << 20))
    for gap, pages in draw_from(st.lists(
        st.tuples(st.sampled_from([0, 0, 1, 16, 1 << 18, 1 << 28]), st.integers(1, 1 << 21)),
        max_size=40,
    )):  # fmt: skip
        at += gap
        label = draw_from(st.sampled_from(["", "[heap]", "[anon:a long name of a library]"]))
        blocks.append(block(at << 12, pages, "rw-p", label))
        at += pages
    return blocks


@given(layouts(), st.integers(60, 200), st.booleans(), st.integers(1, 60))
def test_it_fits(blocks, width, plain, rows):
    scene = Scene("t", "s", blocks, lambda start, end: 1)
    text = draw(scene, width, rows, color=False, plain=plain)
    lines = text.splitlines()
    assert all(len(line) <= width for line in lines)
    assert all(line == line.rstrip() for line in lines) and not text.endswith("\n")
    assert not plain or text.isascii()
    assert "\x1b" not in text
    framed = [line for line in lines if line.endswith(("│", "║", "|"))]
    assert {len(line) for line in framed} <= {width}
    shown = [line for line in lines if re.match(r"^ +[0-9a-f]+ [│|] ", line)]
    assert len(shown) == min(len(blocks), rows)


@given(layouts(), st.integers(20, 59), st.booleans(), st.integers(1, 60))
def test_it_fits_a_small_terminal(blocks, width, plain, rows):
    kernel = [KernelArea(0xFFFF888000000000, 1 << 30, "direct map", "1 GiB on 2 nodes")]
    scene = Scene("a name that is long, pid 5", "3 VMAs, 68 KiB", blocks, lambda a, b: 1, kernel)
    text = draw(scene, width, rows, color=False, plain=plain)
    lines = text.splitlines()
    assert all(len(line) <= width and line == line.rstrip() for line in lines)
    assert not plain or text.isascii()
    framed = [line for line in lines if line.endswith(("│", "║", "|"))]
    assert {len(line) for line in framed} == {width} if framed else not blocks
    shown = [line for line in lines if re.match(r"^ [0-9a-f]+( |$)", line)]
    addresses = [int(line.split()[0], 16) for line in shown]
    groups = condense(blocks, rows)
    assert {group.start for group in groups} | {0, kernel[0].start} <= set(addresses)
    strips = [line for line in lines if re.search(r"▕.*▏|\[[.:+*#]+\]", line)]
    assert len(strips) == len(groups)
    painted = draw(scene, width, rows, color=True, plain=plain)
    assert re.sub(r"\x1b\[\d+m", "", painted).split() == text.split()


@given(layouts(), st.integers(1, 30))
def test_groups_lose_nothing(blocks, most):
    groups = condense(blocks, most)
    assert len(groups) == min(most, len(blocks))
    assert sum(g.vmas for g in groups) == len(blocks)
    assert sum(g.mapped for g in groups) == sum(b.mapped for b in blocks)
    assert all(a.end <= b.start for a, b in pairwise(groups))
    assert {g.start for g in groups} <= {b.start for b in blocks}


def test_the_widest_gaps_part_groups():
    near = [block(A + i * 2 * PAGE_SIZE, 1) for i in range(50)]
    far = [block(2 * A + i * 2 * PAGE_SIZE, 1, "r--p", "[anon:x]") for i in range(50)]
    low, high = condense([*near, *far], 2)
    assert (low.vmas, low.perms, low.label) == (50, "rw-p", "50 VMAs")
    assert (high.vmas, high.perms, high.label) == (50, "r--p", "50 VMAs, [anon:x]")
    assert condense([*near, *far], 1)[0].perms == "r*-p"
    # Where all lie alike, none is singled out.
    assert [g.vmas for g in condense(near, 4)] == [12, 13, 12, 13]


@pytest.mark.parametrize(("size", "text"), [
    (0, "0 B"), (4096, "4 KiB"), (1 << 20, "1 MiB"), (1536 << 10, "1.5 MiB"),
    (1 << 47, "128 TiB"), ((1 << 20) - 1, "1024 KiB"), ((1 << 64) - 1, "16 EiB"),
])  # fmt: skip
def test_sizes(size, text):
    assert human(size) == text


def a_process(**options):
    return Drawn(
        [a_vma(0x10000000, 0x10008000),
         a_vma(A, A + 8 * PAGE_SIZE, name="arena"),
         a_vma(A + 8 * PAGE_SIZE, A + 9 * PAGE_SIZE, 0x75)],
        FakeCore([A + 4 * PAGE_SIZE, A + 5 * PAGE_SIZE, A + 8 * PAGE_SIZE]), **options,
    )  # fmt: skip


def test_a_process():
    p = a_process(brk=0x10008000)
    lines = p.draw(80).splitlines()
    assert lines[0] == " fake, pid 5"
    assert lines[1] == (
        " 3 VMAs, 68 KiB mapped, 172 KiB in memory, 20 KiB swapped, 12 KiB of page tables"
    )
    rows = {line.split()[0]: line for line in lines if re.match(r"^ +[0-9a-f]+ ", line)}
    places = [lines.index(rows[a]) for a in (
        "ffffffffffffffff", "ffffc90000000000", "ffff888000000000", "ffff800000000000",
        "7ffffffff000", "7f0000008000", "7f0000000000", "10000000", "0")]
    assert places == sorted(places)
    direct_map = rows["ffff888000000000"]
    assert "direct map      256 MiB   256 MiB on 1 node, 234 MiB free" in direct_map
    assert "28 KiB in use" in rows["ffffc90000000000"]
    assert "r-xp" in rows["7f0000008000"] and "100%" in rows["7f0000008000"]
    strip = re.search("▕(.+)▏", rows["7f0000000000"])[1]
    middle = len(strip) // 2
    assert set(strip[:middle]) == {"·"} and set(strip[-len(strip) // 4 + 1 :]) == {"·"}
    assert "█" in strip[middle:] and "25%" in rows["7f0000000000"]
    assert rows["7f0000000000"].endswith("│") and "[anon:arena]" in rows["7f0000000000"]
    assert "[heap]" in rows["10000000"] and "%" not in rows["10000000"]
    # Neighbours touch; elsewhere the gap is told.
    assert lines.index(rows["7f0000000000"]) == lines.index(rows["7f0000008000"]) + 1
    assert any(line.endswith("┊ 127 TiB") for line in lines)


@pytest.mark.parametrize("width", [20, 40, 60, 200])
def test_a_process_on_a_terminal_of_any_width(width):
    text = a_process(brk=0x10008000).draw(width)
    assert max(map(len, text.splitlines())) == width
    words = " ".join(text.split())
    for found in ("r-xp", "rw-p", "100%", "25%", "7f0000008000", "ffff888000000000", "[heap]",
                  "direct map", "3 VMAs", "in memory", "user half", "4 KiB", "32 KiB"):
        assert found in words or (width == 60 and found == "[heap]")
    assert "█" in text and "·" in text


def test_colours_and_width_are_the_terminals(monkeypatch):
    p = a_process()
    assert "\x1b" not in p.draw()           # pytest's capture is no terminal
    painted = p.draw(80, color=True)
    assert re.sub(r"\x1b\[\d+m", "", painted).split() == p.draw(80).split()
    monkeypatch.setenv("COLUMNS", "123")
    assert max(map(len, p.draw().splitlines())) == 123
    monkeypatch.setenv("COLUMNS", "40")
    assert max(map(len, p.draw().splitlines())) == 40
    monkeypatch.setenv("COLUMNS", "10")
    assert max(map(len, p.draw().splitlines())) == 20 == max(map(len, p.draw(1).splitlines()))


def test_a_hundred_thousand_vmas():
    vmas = [a_vma(A + i * 2 * PAGE_SIZE, A + (i * 2 + 1) * PAGE_SIZE) for i in range(100_000)]
    text = Drawn(vmas).draw(80)
    assert text.startswith(" fake, pid 5\n 100,000 VMAs, 391 MiB mapped")
    assert len(text.splitlines()) < 250
    counts = [int(n.replace(",", "")) for n in re.findall(r"([\d,]+) VMAs *│", text)]
    assert sum(counts) == 100_000
