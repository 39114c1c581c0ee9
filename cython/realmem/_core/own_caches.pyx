# cython: language_level=3
"""The slab caches of realmem's own kernel-side objects: what they are made with."""
from libc.stdint cimport uint64_t

from realmem._core.kmem_cache cimport KmemCache
from realmem._core.pages cimport PageAllocator
from realmem._kernel.kernel_caches cimport (
    ANON_VMA, ANON_VMA_CHAIN, MM_STRUCT, NR_DEDICATED, RADIX_TREE_NODE, SHMEM_INODE,
    TASK_STRUCT, VM_AREA_STRUCT, VMAP_AREA, anon_vma_ctor, dedicated_cache,
)
from realmem._kernel.mm_types cimport (
    address_space, anon_vma, anon_vma_chain, mm_core, radix_node, task_struct, vm_area_struct,
    vmap_area,
)
from realmem._kernel.slab_cache cimport shrink_cache
from realmem._kernel.slab_types cimport slab_of

NAMES = {
    TASK_STRUCT: "task_struct", MM_STRUCT: "mm_struct", VM_AREA_STRUCT: "vm_area_struct",
    VMAP_AREA: "vmap_area", ANON_VMA: "anon_vma", ANON_VMA_CHAIN: "anon_vma_chain",
    SHMEM_INODE: "shmem_inode_cache", RADIX_TREE_NODE: "radix_tree_node",
}
SIZES = {
    TASK_STRUCT: sizeof(task_struct), MM_STRUCT: sizeof(mm_core),
    VM_AREA_STRUCT: sizeof(vm_area_struct), VMAP_AREA: sizeof(vmap_area),
    ANON_VMA: sizeof(anon_vma), ANON_VMA_CHAIN: sizeof(anon_vma_chain),
    SHMEM_INODE: sizeof(address_space), RADIX_TREE_NODE: sizeof(radix_node),
}
# Where the allocator may write into a free object that keeps its state.
FREE_POINTERS = {VM_AREA_STRUCT: <uint64_t>&(<vm_area_struct*>0).vm_next}
# Not &anon_vma_ctor: what is cimported is a variable that holds the function's address.
CONSTRUCTORS = {ANON_VMA: <uint64_t><void*>anon_vma_ctor}


def use(KmemCache cache not None, int which):
    """Let the kernel side take such objects from a cache from now on."""
    if not 0 <= which < NR_DEDICATED or cache.object_size < SIZES[which]:
        raise ValueError(f"{cache!r} is not for object {which}")
    cache.usable()
    cache.kept = True
    slab_of(cache.s.machine).dedicated[which] = cache.s


def shrink_process_caches(PageAllocator pages not None):
    """Give back what processes left behind; there is none any more."""
    try:
        pages.alive()
    except ValueError:                  # it is being closed, which gives everything back
        return
    pages.busy += 1
    with nogil:
        shrink_cache(dedicated_cache(pages.m, TASK_STRUCT))
        shrink_cache(dedicated_cache(pages.m, MM_STRUCT))
        shrink_cache(dedicated_cache(pages.m, VM_AREA_STRUCT))
        shrink_cache(dedicated_cache(pages.m, ANON_VMA))
    pages.busy -= 1
