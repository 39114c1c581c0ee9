from pathlib import Path

from realmem._bench.target import Allocator

class LLFreeAllocator(Allocator):
    def __init__(self, path: str | Path, frames: int, cores: int) -> None: ...
