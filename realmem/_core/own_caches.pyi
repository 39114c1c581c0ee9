from realmem._core.kmem_cache import KmemCache
from realmem._core.pages import PageAllocator

NAMES: dict[int, str]
SIZES: dict[int, int]
FREE_POINTERS: dict[int, int]
CONSTRUCTORS: dict[int, int]

def use(cache: KmemCache, which: int) -> None: ...
def shrink_process_caches(pages: PageAllocator) -> None: ...
