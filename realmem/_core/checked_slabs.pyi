from typing import Any

from realmem._core.slabs import SlabAllocator

def take_findings(allocator: SlabAllocator) -> tuple[list[dict[str, Any]], int]: ...
