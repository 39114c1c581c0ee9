"""``machine.sysctl``: the vm sysctls that take effect, by Linux's names and with its limits."""

from __future__ import annotations

import errno
import os
import threading
import weakref
from collections.abc import Callable, Iterator, MutableMapping, Sequence
from dataclasses import replace
from typing import Any

from realmem.arguments import as_int
from realmem.mm.settings import RANGES, VmSettings, attribute
from realmem.watermark import MIN_PERCPU_PAGELIST_HIGH_FRACTION, default_min_free_kbytes
from realmem.zonecalc import VmKnobs, lowmem_pages, node_shapes, setup_per_zone

INT_MAX = 2**31 - 1
INT_MIN = -(2**31)


def _int(name: str, value: Any, lowest: int = 0, highest: int = INT_MAX) -> int:
    number = as_int(value, name)
    if not lowest <= number <= highest:
        raise _invalid(name, value)
    return number


def _invalid(name: str, value: Any) -> OSError:
    return OSError(errno.EINVAL, f"{os.strerror(errno.EINVAL)}: {value!r}", name)


def _scale_factor(name: str, value: Any, old: int) -> int:
    return _int(name, value, 1, 3000)


def _high_fraction(name: str, value: Any, old: int) -> int:
    fraction = _int(name, value)
    if 0 < fraction < MIN_PERCPU_PAGELIST_HIGH_FRACTION:
        raise _invalid(name, value)
    return fraction


def _reserve_ratio(name: str, value: Any, old: tuple[int, ...]) -> tuple[int, ...]:
    if not isinstance(value, Sequence) or isinstance(value, (str, bytes)):
        raise TypeError(f"{name} takes a tuple of ints, one for each zone, not {value!r}")
    # A short list leaves the later ratios as they are; what is not positive reserves nothing.
    ratios = [max(_int(name, ratio, INT_MIN), 0) for ratio in value]
    if not 1 <= len(ratios) <= len(old):
        raise _invalid(name, value)
    return (*ratios, *old[len(ratios) :])


_CHECKS: dict[str, Callable[[str, Any, Any], Any]] = {
    "vm.lowmem_reserve_ratio": _reserve_ratio,
    "vm.min_free_kbytes": lambda name, value, old: _int(name, value),
    "vm.percpu_pagelist_high_fraction": _high_fraction,
    "vm.watermark_scale_factor": _scale_factor,
}
_NAMES = sorted([*_CHECKS, *RANGES])


class Sysctl(MutableMapping[str, Any]):
    """
    Mapping of sysctl names to ints (``vm.lowmem_reserve_ratio``: a tuple by zone).

    Assigning takes effect before it returns: every zone is computed anew and published.  A value
    that Linux refuses is ``OSError(EINVAL)`` and changes nothing.

    :param knobs: what the machine starts with.
    :param publish: makes new values known to the zones.
    :param enter: called before anything is read or changed; raises what forbids it.
    :param settings: those that system calls read.
    :ivar settings: the same.
    """

    def __init__(
        self,
        knobs: VmKnobs,
        publish: Callable[[VmKnobs], None],
        enter: Callable[[], None],
        settings: VmSettings | None = None,
    ) -> None:
        self.settings = VmSettings() if settings is None else settings
        self._knobs = knobs
        self._publish = publish
        self._enter = enter
        self._user_min_free_kbytes = -1
        # Writers compute and publish one after the other, so that the zones show the last one.
        self._lock = threading.Lock()

    def __getitem__(self, name: str) -> Any:
        self._enter()
        return self._value(name)

    def __setitem__(self, name: str, value: Any) -> None:
        self._enter()
        if name in RANGES:
            self.settings.set(name, _int(name, value, *RANGES[name]))
            return
        check = _CHECKS.get(name)
        if check is None:
            raise KeyError(name)
        with self._lock:
            field = _field(name)
            new = check(name, value, getattr(self._knobs, field))
            self._set(field, new)
            if field == "min_free_kbytes":
                self._user_min_free_kbytes = new

    def __delitem__(self, name: str) -> None:
        self._enter()
        if name not in _NAMES:
            raise KeyError(name)
        raise OSError(errno.EPERM, os.strerror(errno.EPERM), name)

    def __iter__(self) -> Iterator[str]:
        return iter(_NAMES)

    def __len__(self) -> int:
        return len(_NAMES)

    def _value(self, name: str) -> Any:
        if name in RANGES:
            return getattr(self.settings, _field(name))
        if name not in _CHECKS:
            raise KeyError(name)
        return getattr(self._knobs, _field(name))

    def __repr__(self) -> str:
        return f"Sysctl({ {name: self._value(name) for name in _NAMES}!r})"

    @property
    def knobs(self) -> VmKnobs:
        """The values in force, all of one moment."""
        return self._knobs

    def refresh_min_free_kbytes(self, lowmem: int, raised_kbytes: int = 0) -> None:
        """
        Compute ``vm.min_free_kbytes`` anew after memory or huge-page settings changed.

        What a user wrote stays unless the default grew past it; ``raised_kbytes`` (see
        watermark.thp_min_free_kbytes) raises either.  Compare
        mm/page_alloc.c:calculate_min_free_kbytes(),
        mm/khugepaged.c:set_recommended_min_free_kbytes().

        :param lowmem: pages above the high marks outside Movable zones.
        :param raised_kbytes: what it must be at least, 0 for no such wish.
        """
        with self._lock:
            kbytes = self._knobs.min_free_kbytes
            default = default_min_free_kbytes(lowmem)
            if default > self._user_min_free_kbytes and not raised_kbytes:
                kbytes = default
            self._set("min_free_kbytes", max(kbytes, raised_kbytes))

    def _set(self, field: str, value: Any) -> None:
        new = replace(self._knobs, **{field: value})
        self._publish(new)
        self._knobs = new


def _field(name: str) -> str:
    return attribute(name)


def boot_sysctl(machine: Any) -> Sysctl:
    """
    Give a machine its sysctls, with Linux's defaults for its size, and set up its zones.

    Compare mm/page_alloc.c:init_per_zone_wmark_min().
    """
    knobs = VmKnobs(default_min_free_kbytes(lowmem_pages(node_shapes(machine))))
    setup_per_zone(machine, knobs)
    alive = weakref.ref(machine)

    def publish(knobs: VmKnobs) -> None:
        machine = alive()
        if machine is None:
            raise ValueError("the machine is gone")
        setup_per_zone(machine, knobs)

    total = sum(sum(shape.managed) for shape in node_shapes(machine))
    return Sysctl(knobs, publish, machine._allocator.check_alive, VmSettings(total))
