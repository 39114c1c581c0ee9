"""Slab caches by name: made with Linux's geometry, merged, looked up."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING

from realmem import slabcalc
from realmem.layout import SLAB, parse_size
from realmem.slab_debug import SlabDebug
from realmem.slabcalc import KMALLOC_MAX_SIZE, KMALLOC_SIZES, KMALLOC_TYPES
from realmem.slub import SlabReports

if TYPE_CHECKING:
    from realmem._core.kmem_cache import KmemCache
    from realmem._core.pages import PageAllocator

# What callers may ask for (SLAB_FLAGS_PERMITTED).
_PERMITTED = (
    SLAB.HWCACHE_ALIGN | SLAB.PANIC | SLAB.RECLAIM_ACCOUNT | SLAB.ACCOUNT | SLAB.TYPESAFE_BY_RCU
    | SLAB.NO_MERGE | SLAB.CACHE_DMA | SLAB.CACHE_DMA32 | slabcalc.DEBUG_FLAGS
)
_KMALLOC_FLAGS = {
    "": SLAB.NO_MERGE,
    "dma-": SLAB.CACHE_DMA,
    "rcl-": SLAB.RECLAIM_ACCOUNT,
    "cg-": SLAB.ACCOUNT,
}
_NAME_MAX = 255
# Flags and alignment of what realmem's own objects live in: Linux's, on x86-64.
_DEDICATED = {
    "task_struct": (SLAB.PANIC | SLAB.ACCOUNT, 64),
    "mm_struct": (SLAB.HWCACHE_ALIGN | SLAB.PANIC | SLAB.ACCOUNT, 0),
    "vm_area_struct": (
        SLAB.HWCACHE_ALIGN | SLAB.PANIC | SLAB.ACCOUNT | SLAB.TYPESAFE_BY_RCU, 0
    ),
    "vmap_area": (SLAB.PANIC, 0),
    "anon_vma": (SLAB.TYPESAFE_BY_RCU | SLAB.PANIC | SLAB.ACCOUNT, 0),
    "anon_vma_chain": (SLAB.PANIC | SLAB.ACCOUNT, 0),
    "shmem_inode_cache": (SLAB.PANIC | SLAB.ACCOUNT, 0),
    "radix_tree_node": (SLAB.PANIC | SLAB.RECLAIM_ACCOUNT, 0),
}


class SlabCaches:
    """
    The slab caches of one machine, the generic ones made at once.

    :param pages: its page allocator.
    :param nr_cpus: present CPUs: more of them make larger slabs.
    :param debug: which of them are debugged besides those that ask for it.
    :ivar reports: what their checks found.
    """

    def __init__(self, pages: PageAllocator, nr_cpus: int, debug: SlabDebug) -> None:
        from realmem._core.kmem import Kmalloc
        from realmem._core.slabs import SlabAllocator

        self.core = SlabAllocator(pages)
        self.kmalloc = Kmalloc(self.core)
        self.reports = SlabReports(self.core)
        self.core.report_to(self.reports.collect)
        self._debug = debug
        self._nr_cpus = nr_cpus
        self._make_generic()
        self._make_dedicated()

    def _make_generic(self) -> None:
        """Make the kmalloc caches; the plain ones have their index as magazine."""
        from realmem._core.kmem_cache import create_cache

        for kind, prefix in enumerate(KMALLOC_TYPES):
            for index, size in list(enumerate(KMALLOC_SIZES))[1:]:
                name = slabcalc.kmalloc_name(prefix, size)
                flags, layout = self._lay_out(
                    name, size, slabcalc.kmalloc_align(size),
                    SLAB.KMALLOC | _KMALLOC_FLAGS[prefix],
                )
                create_cache(
                    self.core,
                    name,
                    flags,
                    layout,
                    slot=-1 if kind else index,
                    kind=kind,
                    index=index,
                )

    def _make_dedicated(self) -> None:
        """Make the caches of realmem's own kernel-side objects, each its own."""
        from realmem._core import own_caches as own
        from realmem._core.kmem_cache import create_cache

        for which, name in own.NAMES.items():
            flags, align = _DEDICATED[name]
            ctor = own.CONSTRUCTORS.get(which)
            flags, layout = self._lay_out(
                name,
                own.SIZES[which],
                align,
                flags,
                ctor=ctor is not None,
                freeptr_offset=own.FREE_POINTERS.get(which),
            )
            own.use(create_cache(self.core, name, flags, layout, ctor), which)

    def _lay_out(
        self,
        name: str,
        size: int,
        align: int,
        flags: SLAB,
        *,
        ctor: bool = False,
        freeptr_offset: int | None = None,
    ) -> tuple[SLAB, slabcalc.Geometry]:
        """Give a cache its flags, the option's included, and its layout (kmem_cache_flags())."""
        def geometry(flags: SLAB) -> slabcalc.Geometry:
            return slabcalc.geometry(size, align, flags, nr_cpus=self._nr_cpus, ctor=ctor,
                                     freeptr_offset=freeptr_offset)

        flags |= self._debug.flags_of(name)
        layout = geometry(flags)
        if not self._debug.may_grow(size, layout.size):
            flags = self._debug.without_metadata(flags)
            layout = geometry(flags)
        return flags, layout

    @property
    def by_name(self) -> Mapping[str, KmemCache]:
        """The caches, aliases included, oldest first."""
        return MappingProxyType(self.core.caches)

    def create(
        self,
        name: str,
        size: int | str,
        align: int = 0,
        flags: SLAB = slabcalc.NO_FLAGS,
        ctor: Callable[[memoryview], object] | int | None = None,
        freeptr_offset: int | None = None,
    ) -> KmemCache:
        """
        Make a cache, or give one that can serve it as well another name.

        Compare mm/slab_common.c:__kmem_cache_create_args().

        :param name: not taken yet.
        :param size: bytes of an object, 1 to 4 MiB, or a string such as "4K".
        :param align: power of two that addresses are multiples of, or 0.
        :param flags: SLAB flags.
        :param ctor: run once for each object when its slab is made: a callable that takes the
            object's memoryview, or the address of a C function ``void (*)(void *)``.
        :param freeptr_offset: where in a free object the allocator may write although the
            object keeps its state.
        :raises ValueError: what Linux refuses or warns of.
        """
        from realmem._core.kmem_cache import alias_cache, create_cache

        _check_name(name, self.core.caches)
        flags = _as_flags(flags)
        size = parse_size(size) if isinstance(size, str) else size
        _check_sizes(size, align)
        _check_ctor(ctor)
        if freeptr_offset is not None and (
            not isinstance(freeptr_offset, int) or isinstance(freeptr_offset, bool)
        ):
            raise TypeError(f"freeptr_offset must be an int, not {freeptr_offset!r}")
        if freeptr_offset is not None and not (
            (ctor is not None or flags & SLAB.TYPESAFE_BY_RCU)
            and 0 <= freeptr_offset < size
            and freeptr_offset % 8 == 0
        ):
            raise ValueError(
                f"freeptr_offset {freeptr_offset} is not a multiple of 8 inside an object that "
                f"keeps its state"
            )
        flags, layout = self._lay_out(
            name, size, align, flags, ctor=ctor is not None, freeptr_offset=freeptr_offset
        )
        if ctor is None and freeptr_offset is None:
            existing = slabcalc.find_mergeable(
                reversed(self.core.caches.values()), size, align, flags
            )
            if existing is not None:
                return alias_cache(self.core, name, existing, flags, layout)
        return create_cache(self.core, name, flags, layout, ctor)


def _check_name(name: str, taken: Mapping[str, object]) -> None:
    if not isinstance(name, str):
        raise TypeError(f"name must be a str, not {name!r}")
    # It becomes a directory's name.
    if (
        name in ("", ".", "..")
        or not name.isprintable()
        or any(letter.isspace() or letter == "/" for letter in name)
        or len(name.encode()) > _NAME_MAX
    ):
        raise ValueError(f"a cache can't be called {name!r}")
    if name in taken:
        raise ValueError(f"there is a cache {name!r} already")


def _as_flags(flags: int) -> SLAB:
    if not isinstance(flags, int) or isinstance(flags, bool):
        raise TypeError(f"flags must be SLAB flags, not {flags!r}")
    if flags < 0 or flags & ~int(_PERMITTED):
        raise ValueError(f"flags that no cache may ask for: {flags:#x}")
    return SLAB(flags)


def _check_sizes(size: int, align: int) -> None:
    for what, value in (("size", size), ("align", align)):
        if not isinstance(value, int) or isinstance(value, bool):
            raise TypeError(f"{what} must be an int, not {value!r}")
    if not 0 < size <= KMALLOC_MAX_SIZE:
        raise ValueError(f"size {size} is not within 1 and {KMALLOC_MAX_SIZE} bytes")
    if align < 0 or align & (align - 1) or align > KMALLOC_MAX_SIZE:
        raise ValueError(f"align {align} is not a power of two up to {KMALLOC_MAX_SIZE}")


def _check_ctor(ctor: object) -> None:
    if ctor is None or callable(ctor):
        return
    if not isinstance(ctor, int) or isinstance(ctor, bool):
        raise TypeError(f"ctor must be a callable or an address, not {ctor!r}")
    if not 0 < ctor < 1 << 64:
        raise ValueError(f"ctor is not the address of a function: {ctor:#x}")
