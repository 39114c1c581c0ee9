"""The bits of GFP flags against the running kernel, which spells them out in its trace formats."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

import realmem as rm
from realmem import GFP

EVENT = "events/kmem/mm_page_alloc/format"


@pytest.fixture(scope="module")
def kernel_masks(tmp_path_factory):
    """GFP names to values, from tracefs; mounted apart for a moment if it is not there."""
    for place in ("/sys/kernel/tracing", "/sys/kernel/debug/tracing"):
        path = Path(place, EVENT)
        try:
            return masks(path.read_text())
        except OSError:
            continue
    place = tmp_path_factory.mktemp("tracefs")
    done = subprocess.run(["mount", "-t", "tracefs", "none", str(place)], capture_output=True,
                          text=True)
    if done.returncode:
        pytest.skip(f"no oracle: tracefs is not mounted and may not be: {done.stderr.strip()}")
    try:
        return masks((place / EVENT).read_text())
    except OSError as error:
        pytest.skip(f"no oracle: {error}")
    finally:
        subprocess.run(["umount", str(place)], check=True)


def masks(text):
    """Read the table behind __print_flags(): C expressions over shifts of 1."""
    found = {}
    for expression, name in re.findall(r'\{\s*\(\s*unsigned long\)(.*?),\s*"(\w+)"\s*\}', text):
        plain = re.sub(r"\(\s*gfp_t\s*\)", "", expression).replace("UL", "")
        assert re.fullmatch(r"[\d\s()|&~<x]+", plain), plain
        found[name] = eval(plain) & 0xFFFFFFFF
    return found


@pytest.mark.conformance("GF-01")
def test_masks_are_the_kernels(kernel_masks):
    if "GFP_KERNEL" not in kernel_masks:
        pytest.skip("no oracle: the format names no masks")
    for name in ("KERNEL", "KERNEL_ACCOUNT", "ATOMIC", "USER", "HIGHUSER", "HIGHUSER_MOVABLE",
                 "NOIO", "NOFS", "NOWAIT", "DMA", "DMA32", "TRANSHUGE", "TRANSHUGE_LIGHT"):
        if f"GFP_{name}" not in kernel_masks:
            continue
        theirs, ours = kernel_masks[f"GFP_{name}"], int(getattr(rm, f"GFP_{name}"))
        if name == "NOWAIT":        # carries __GFP_NOWARN since 6.11 only
            theirs, ours = theirs | GFP.NOWARN, ours | GFP.NOWARN
        assert ours == theirs, f"GFP_{name}: {ours:#x}, the kernel's {theirs:#x}"


@pytest.mark.conformance("GF-01")
def test_bits_are_the_kernels(kernel_masks):
    compared = 0
    for name, value in kernel_masks.items():
        flag = GFP.__members__.get(name.removeprefix("__GFP_"))
        if name.startswith("__GFP_") and flag is not None:
            assert flag == value, f"{name}: {int(flag):#x}, the kernel's {value:#x}"
            compared += 1
    if not compared:
        pytest.skip("no oracle: the format names no bits")
    assert compared >= 15
