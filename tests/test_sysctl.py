"""machine.sysctl alone: limits, errors, and what reaches the zones."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from realmem import watermark
from realmem.procfs.sysctl import sysctl_files
from realmem.sysctl import Sysctl, boot_sysctl
from realmem.zonecalc import NodeShape, VmKnobs, compute_zones


class Allocator:
    """Keeps what was published last to each zone."""

    def __init__(self):
        self.zones = {}

    def publish_zone(self, index, **figures):
        self.zones[index] = figures

    def check_alive(self):
        pass


class Machine(SimpleNamespace):
    """Nodes and zones without memory behind them; unlike a bare namespace, weakly referable."""

    @property
    def cpus(self):
        return sum(len(node.cpus) for node in self.nodes)

    def nr_cpus_of(self, nid):
        return len(self.nodes[nid].cpus)


def machine_of(*nodes):
    """Make a machine of (pages by zone name, number of CPUs) pairs."""
    return Machine(
        _allocator=Allocator(),
        nodes=[
            SimpleNamespace(
                id=nid,
                cpus=list(range(nr_cpus)),
                zones=[
                    SimpleNamespace(name=name, managed_pages=pages)
                    for name, pages in zones.items()
                ],
            )
            for nid, (zones, nr_cpus) in enumerate(nodes)
        ],
    )


@pytest.fixture
def machine():
    made = machine_of(({"DMA": 4096, "DMA32": 61440}, 2), ({"DMA32": 32768, "Normal": 32768}, 0))
    made.sysctl = boot_sysctl(made)
    return made


def test_boot_values(machine):
    kbytes = (4096 + 61440 + 32768 + 32768) * 4
    assert dict(machine.sysctl) == {
        "vm.admin_reserve_kbytes": 8192,
        "vm.max_map_count": 65530,
        "vm.mmap_min_addr": 65536,
        "vm.overcommit_kbytes": 0,
        "vm.overcommit_memory": 0,
        "vm.overcommit_ratio": 50,
        "vm.page-cluster": 3,
        "vm.swappiness": 60,
        "vm.user_reserve_kbytes": kbytes // 32,
        "vm.lowmem_reserve_ratio": (256, 256, 32, 0),
        "vm.min_free_kbytes": watermark.default_min_free_kbytes(131072),
        "vm.percpu_pagelist_high_fraction": 0,
        "vm.watermark_scale_factor": 10,
    }
    zones = machine._allocator.zones
    assert sorted(zones) == list(range(8)), "zones without memory too: a Movable one has a minimum"
    assert zones[1]["watermark"] == (339, 423, 507, 591)
    assert zones[3]["watermark"] == (32, 32, 32, 32)
    assert zones[0]["lowmem_reserve"] == [0, 240, 240, 240]
    assert zones[5]["lowmem_reserve"] == [0, 0, 128, 128], "of its own node's zones only"
    assert (zones[1]["batch"], zones[1]["high_min"]) == (15, 211)
    assert zones[5]["high_min"] == zones[6]["high_min"], "a node without CPUs is shared by all"


@pytest.mark.conformance("WM-14")
def test_min_free_kbytes_recomputes_all_marks_at_once(machine):
    before = dict(machine._allocator.zones)
    machine.sysctl["vm.min_free_kbytes"] = 8192
    assert machine.sysctl["vm.min_free_kbytes"] == 8192
    after = machine._allocator.zones
    for index in (0, 1, 5, 6):
        assert after[index]["watermark"] > before[index]["watermark"]
    expected = watermark.zone_watermarks(
        [(0, 4096), (1, 61440), (2, 0), (3, 0), (0, 0), (1, 32768), (2, 32768), (3, 0)], 8192
    )
    assert [after[index]["watermark"] for index in range(8)] == expected


@pytest.mark.conformance("WM-15")
def test_scale_factor_moves_low_and_high_only(machine):
    before = machine._allocator.zones[1]["watermark"]
    machine.sysctl["vm.watermark_scale_factor"] = 300
    after = machine._allocator.zones[1]["watermark"]
    assert after == (before[0], before[0] + 1843, before[0] + 3686, before[0] + 5529)


def test_high_fraction_pins_the_lists(machine):
    machine.sysctl["vm.percpu_pagelist_high_fraction"] = 8
    zone = machine._allocator.zones[1]
    assert zone["high_min"] == zone["high_max"] == 61440 // 8 // 2
    machine.sysctl["vm.percpu_pagelist_high_fraction"] = 0
    zone = machine._allocator.zones[1]
    assert zone["high_min"] < zone["high_max"]


def test_reserve_ratio(machine):
    machine.sysctl["vm.lowmem_reserve_ratio"] = (64, 0)
    assert machine.sysctl["vm.lowmem_reserve_ratio"] == (64, 0, 32, 0), "the rest stays"
    assert machine._allocator.zones[0]["lowmem_reserve"] == [0, 960, 960, 960]
    assert machine._allocator.zones[5]["lowmem_reserve"] == [0, 0, 0, 0]
    machine.sysctl["vm.lowmem_reserve_ratio"] = [-7]
    assert machine.sysctl["vm.lowmem_reserve_ratio"][0] == 0


BAD = [
    ("vm.min_free_kbytes", -1),
    ("vm.min_free_kbytes", 2**31),
    ("vm.watermark_scale_factor", 0),
    ("vm.watermark_scale_factor", -1),
    ("vm.watermark_scale_factor", 3001),
    ("vm.percpu_pagelist_high_fraction", 7),
    ("vm.percpu_pagelist_high_fraction", 1),
    ("vm.percpu_pagelist_high_fraction", -1),
    ("vm.percpu_pagelist_high_fraction", 2**31),
    ("vm.lowmem_reserve_ratio", (2**31,)),
    ("vm.lowmem_reserve_ratio", (1, 2, 3, 4, 5)),
    ("vm.lowmem_reserve_ratio", ()),
    ("vm.overcommit_memory", 3),
    ("vm.overcommit_memory", -1),
    ("vm.max_map_count", -1),
    ("vm.max_map_count", 2**31),
    ("vm.overcommit_ratio", 2**31),
]


@pytest.mark.parametrize(("name", "value"), BAD)
def test_refused_values_change_nothing(machine, name, value):
    before, zones = dict(machine.sysctl), dict(machine._allocator.zones)
    with pytest.raises(OSError) as caught:
        machine.sysctl[name] = value
    assert caught.value.errno == errno.EINVAL
    assert (dict(machine.sysctl), machine._allocator.zones) == (before, zones)


@pytest.mark.parametrize(
    ("name", "text"),
    [(name, str(value)) for name, value in BAD if isinstance(value, int)]
    + [
        ("vm.min_free_kbytes", text)
        for text in ("abc", " ", "\n", "5x", "+5", "08", "0x", "1.5", "-", "5,6", "")
    ],
)
def test_the_running_kernel_refuses_the_same_texts(machine, name, text):
    """Refused writes change nothing there either, so they can be tried on the host."""
    ours = outcome(lambda: dict(sysctl_files(machine.sysctl))[file_of(name)].write(text))
    path = Path(file_of(name))
    if not os.access(path, os.W_OK):
        pytest.skip(f"{path} is not ours to write")
    before = path.read_text()
    try:
        assert ours == outcome(lambda: path.write_text(text))
        assert path.read_text() == before
    finally:
        if path.read_text() != before:      # it was taken after all
            path.write_text(before)


def file_of(name):
    return "/proc/sys/" + name.replace(".", "/")


def outcome(call):
    try:
        call()
    except OSError as error:
        return error.errno
    return 0


@pytest.mark.parametrize(
    ("text", "value"),
    [("16\n", 16), ("  010", 8), ("0x20 junk", 32), ("9\t8", 9), ("-0", 0)],
)
def test_written_numbers_are_c_numbers(machine, text, value):
    path = file_of("vm.percpu_pagelist_high_fraction")
    file = dict(sysctl_files(machine.sysctl))[path]
    file.write(text)
    assert machine.sysctl["vm.percpu_pagelist_high_fraction"] == value
    assert file.read() == f"{value}\n"


def test_written_ratios_stop_at_the_first_bad_one(machine):
    """The kernel drops its own error there: what came before counts, the write succeeds."""
    file = dict(sysctl_files(machine.sysctl))[file_of("vm.lowmem_reserve_ratio")]
    file.write("255 abc 9")
    assert file.read() == "255\t256\t32\t0\n"
    file.write("254x 7")
    assert file.read() == "255\t256\t32\t0\n"
    file.write("1 -5 3 4 5 6")
    assert file.read() == "1\t0\t3\t4\n"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("vm.min_free_kbytes", "8192"),
        ("vm.min_free_kbytes", 1.5),
        ("vm.min_free_kbytes", None),
        ("vm.lowmem_reserve_ratio", 256),
        ("vm.lowmem_reserve_ratio", "256"),
        ("vm.lowmem_reserve_ratio", ("256",)),
    ],
)
def test_wrong_types(machine, name, value):
    with pytest.raises(TypeError):
        machine.sysctl[name] = value


def test_unknown_names_and_deleting(machine):
    with pytest.raises(KeyError):
        machine.sysctl["vm.nothing"]
    with pytest.raises(KeyError):
        machine.sysctl["vm.nothing"] = 1
    with pytest.raises(OSError) as caught:
        del machine.sysctl["vm.min_free_kbytes"]
    assert caught.value.errno == errno.EPERM
    assert "vm.laptop_mode" not in machine.sysctl, "not until it takes effect"


def test_a_failed_publication_keeps_the_old_value():
    def publish(knobs):
        raise ValueError("closed")

    sysctl = Sysctl(VmKnobs(1024), publish, lambda: None)
    with pytest.raises(ValueError):
        sysctl["vm.min_free_kbytes"] = 2048
    assert sysctl["vm.min_free_kbytes"] == 1024


def test_a_users_min_free_kbytes_sticks(machine):
    sysctl = machine.sysctl
    sysctl.refresh_min_free_kbytes(4 * 262144)
    assert sysctl["vm.min_free_kbytes"] == 8192, "the default follows memory"
    sysctl["vm.min_free_kbytes"] = 6000
    sysctl.refresh_min_free_kbytes(262144)
    assert sysctl["vm.min_free_kbytes"] == 6000, "4096 would be less than the user wants"
    sysctl.refresh_min_free_kbytes(4 * 262144)
    assert sysctl["vm.min_free_kbytes"] == 8192, "more memory needs more than the user wanted"
    sysctl.refresh_min_free_kbytes(4 * 262144, raised_kbytes=67584)
    assert sysctl["vm.min_free_kbytes"] == 67584, "huge pages raise it, whoever set it"


def test_setup_survives_the_machine_going_away():
    made = machine_of(({"DMA32": 65536}, 1))
    sysctl = boot_sysctl(made)
    del made
    with pytest.raises(ValueError, match="gone"):
        sysctl["vm.min_free_kbytes"] = 4096


shapes = st.lists(
    st.builds(
        NodeShape, st.lists(st.integers(0, 1 << 24), min_size=4, max_size=4), st.integers(0, 64)
    ),
    min_size=1,
    max_size=8,
)


@given(shapes, st.integers(0, 1 << 24), st.integers(1, 3000))
def test_every_machine_gets_sound_figures(nodes, kbytes, factor):
    nr_cpus = max(1, sum(node.nr_cpus for node in nodes))
    setups = compute_zones(nodes, VmKnobs(kbytes, factor), nr_cpus)
    assert len(setups) == 4 * len(nodes)
    for index, setup in enumerate(setups):
        assert 1 <= setup.batch and 4 * setup.batch <= setup.high_min
        assert 4 * setup.batch <= setup.high_max
        kind = index % 4
        assert setup.lowmem_reserve[: kind + 1] == [0] * (kind + 1)
        assert setup.lowmem_reserve == sorted(setup.lowmem_reserve)


def test_overcommit_reaches_the_kernel_side(machine):
    told = []

    class Mmu:
        total_pages = 1000
        swap_counts = 0, 0, 0

        def set_overcommit(self, *args):
            told.append(args)

        def set_cow_node(self, where):
            pass

        def set_swapping(self, swappiness, page_cluster):
            pass

        def set_layout(self, *args):
            told.append(args)

    settings = machine.sysctl.settings
    settings.attach(Mmu())
    reserve = settings.user_reserve_kbytes >> 2
    assert told == [(0, 500, 2048, reserve), (65536, 256 * 4096)]
    machine.sysctl["vm.overcommit_memory"] = 2
    machine.sysctl["vm.overcommit_kbytes"] = 400
    assert told[-2] == (2, 100, 2048, reserve) and machine.sysctl["vm.overcommit_ratio"] == 0
    machine.sysctl["vm.overcommit_ratio"] = 80
    assert told[-2] == (2, 800, 2048, reserve) and machine.sysctl["vm.overcommit_kbytes"] == 0
    machine.sysctl["vm.mmap_min_addr"] = 4096
    assert told[-1] == (4096, 256 * 4096)
    settings.attach(None)
    machine.sysctl["vm.overcommit_memory"] = 0
    assert len(told) == 10
