from collections.abc import Sequence

from realmem._core.slabs import KmemCache

PATTERNS: dict[str, int]

class ObjectAllocator:
    @property
    def name(self) -> str: ...

def of_cache(cache: KmemCache) -> ObjectAllocator: ...
def of_kmalloc(cache: KmemCache, size: int) -> ObjectAllocator: ...
def of_malloc(name: str, allocate: int, give_back: int, size: int) -> ObjectAllocator: ...

class Session:
    def __init__(self, threads: int, rounds: int) -> None: ...
    def add(
        self,
        allocator: ObjectAllocator,
        pattern: str,
        threads: int,
        held: int,
        turns: int,
        shuffle: Sequence[int] | None = None,
    ) -> int: ...
    def work(self, index: int) -> None: ...
    def samples(self, row: int) -> list[float]: ...
