"""
Linux's memory management in user space, on real memory and real NUMA nodes.

Importing this package maps nothing and installs no handler; heavy parts load when first used.
"""

from __future__ import annotations

import importlib
from typing import Any

from realmem.errors import (
    AllocatorError,
    AtomicContextError,
    BusError,
    HostError,
    InvariantError,
    OutOfMemory,
    SegmentationFault,
)
from realmem.layout import *  # noqa: F403
from realmem.layout import __all__ as _layout_all

__version__ = "0.1.0"

# Public names that live in modules which are imported when first asked for.
_LAZY = {
    "KmemCache": "realmem._core.kmem_cache",
    "Machine": "realmem.machine",
    "Node": "realmem.node",
    "NodeSpec": "realmem.node",
    "Page": "realmem._core.frames",
    "Process": "realmem.process",
    "Zone": "realmem.node",
    "get_include": "realmem.include",
}

__all__ = [
    "AllocatorError",
    "AtomicContextError",
    "BusError",
    "HostError",
    "InvariantError",
    "OutOfMemory",
    "SegmentationFault",
    "__version__",
    *_LAZY,
    *_layout_all,
]


def __getattr__(name: str) -> Any:
    """Load a lazy public name (PEP 562)."""
    where = _LAZY.get(name)
    if where is None:
        raise AttributeError(f"module 'realmem' has no attribute {name!r}")
    value = getattr(importlib.import_module(where), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
