from realmem._core.kmem_cache import KmemCache

CONSTRUCTOR: int
SIZE: int

def measure(
    made: KmemCache, plain: KmemCache, held: int, turns: int, rounds: int
) -> tuple[list[float], list[float]]: ...
