from realmem._core.pages import PageAllocator

class Allocator:
    @property
    def name(self) -> str: ...

class RealmemAllocator(Allocator):
    def __init__(self, pages: PageAllocator, nid: int, gfp: int) -> None: ...
