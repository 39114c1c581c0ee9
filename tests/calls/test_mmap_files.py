"""mmap of descriptors, offsets and /dev/zero, line by line of the catalogue."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
from fake_pages import RW, WORD, P, refused

from realmem.layout import (
    MAP_FIXED_NOREPLACE,
    MAP_GROWSDOWN,
    MAP_HUGETLB,
    MAP_PRIVATE,
    MAP_SHARED,
    MAP_SHARED_VALIDATE,
    PROT_READ,
    PROT_WRITE,
)

UNKNOWN = 0x80000000                # a flag that no kernel knows


@pytest.mark.conformance("MM-08", "MM-09")
def test_descriptors(p, tmp_path):
    path = tmp_path / "file"
    path.write_bytes(bytes(P))
    refused(errno.EBADF, p.mmap, None, P, RW, MAP_PRIVATE, 99999)
    refused(errno.EBADF, p.mmap, None, P, RW, MAP_PRIVATE, -1)
    for mode, number in ((os.O_PATH, errno.EBADF), (os.O_WRONLY, errno.EACCES)):
        fd = os.open(path, mode)
        try:
            for prot in (PROT_READ, PROT_WRITE, RW):
                for kind in (MAP_PRIVATE, MAP_SHARED):
                    refused(number, p.mmap, None, P, prot, kind, fd)
        finally:
            os.close(fd)
    with path.open("rb") as file:
        refused(errno.EACCES, p.mmap, None, P, RW, MAP_SHARED, file)
        refused(errno.EINVAL, p.mmap, None, P, RW, MAP_PRIVATE | MAP_HUGETLB, file)
        refused(errno.EINVAL, p.mmap, None, P, RW, MAP_PRIVATE | MAP_GROWSDOWN, file)
        refused(errno.EINVAL, p.mmap, None, P, RW, 0, file)
    refused(errno.ENOENT, p.mmap, None, P, RW, MAP_PRIVATE, tmp_path / "none")
    refused(errno.ENODEV, p.mmap, None, P, PROT_READ, MAP_PRIVATE, tmp_path)
    refused(errno.ENODEV, p.mmap, None, P, RW, MAP_PRIVATE, "/dev/null")
    with pytest.raises(TypeError):
        p.mmap(None, P, RW, MAP_PRIVATE, 1.5)
    assert p.vmas == []


@pytest.mark.conformance("MM-05", "MM-06")
def test_unknown_flags(p):
    for flags, number in (
        (MAP_SHARED_VALIDATE | UNKNOWN, errno.EOPNOTSUPP),
        (MAP_SHARED_VALIDATE | MAP_FIXED_NOREPLACE, errno.EOPNOTSUPP),
    ):
        refused(number, p.mmap, 1 << 30, P, RW, flags, "/dev/zero")
    assert p.mmap(None, P, RW, MAP_SHARED | UNKNOWN, "/dev/zero")


@pytest.mark.conformance("MM-23")
def test_offsets(p):
    for offset, pages, fits in ((0, 1, True), (WORD - 2 * P, 1, True), (WORD - P, 1, False)):
        if fits:
            assert p.mmap(None, pages * P, RW, MAP_PRIVATE, "/dev/zero", offset)
        else:
            refused(
                errno.EOVERFLOW, p.mmap, None, pages * P, RW, MAP_PRIVATE, "/dev/zero", offset
            )


def test_offsets_of_files(p, tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"x")
    top = 1 << 63
    refused(errno.EOVERFLOW, p.mmap, None, P, PROT_READ, MAP_PRIVATE, path, top)
    refused(errno.EOVERFLOW, p.mmap, None, 2 * P, PROT_READ, MAP_PRIVATE, path, top - P)


def test_dev_zero(p):
    p.mmap(None, P, RW, MAP_PRIVATE, "/dev/zero", 3 * P)
    (vma,) = p.vmas
    assert (vma.file, vma.offset, vma.anon) == ("/dev/zero", 3 * P, False)
    assert vma.private_anon
    with Path("/dev/zero").open("r+b") as zero:
        for _ in range(2):
            p.mmap(None, P, RW, MAP_SHARED, zero)
    first, second, _ = p.vmas
    assert first.object is not second.object        # each map is an object of its own
    assert first.file == "/dev/zero (deleted)" and first.flags & MAP_SHARED
