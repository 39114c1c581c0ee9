# cython: cdivision=True, boundscheck=False, wraparound=False, initializedcheck=False
"""LLFree's C port (luhsra/llfree-c) as an allocator under test, from its shared library."""
from libc.stdint cimport uint8_t, uint64_t
from libc.stdlib cimport free
from libc.string cimport memset
from posix.dlfcn cimport RTLD_LOCAL, RTLD_NOW, dlclose, dlerror, dlopen, dlsym

from realmem._bench.target cimport (
    LLFREE,
    Allocator,
    ll_classing,
    ll_drain_fn,
    ll_frames_fn,
    ll_get_fn,
    ll_init_fn,
    ll_meta,
    ll_meta_size,
    ll_meta_size_fn,
    ll_policy,
    ll_put_fn,
    ll_result,
    touched_block,
)


# LLFree's way of sharing 16 MiB trees between two classes of requests (0: below the huge
# order, 1: above), as its header's simple example has it.
cdef ll_policy ll_two_classes(uint8_t requested, uint8_t target_class,
                              uint64_t free_frames) noexcept nogil:
    cdef ll_policy answer
    answer.priority = 0
    if requested > target_class:
        answer.type = 1         # steal
    elif requested < target_class:
        answer.type = 2         # demote
    else:
        answer.type = 0         # match; half empty trees come last
        if free_frames >= LL_TREE_FRAMES / 2:
            answer.priority = 1
        elif free_frames >= LL_TREE_FRAMES / 64:
            answer.priority = 255
    return answer

cdef enum:
    LL_TREE_FRAMES = 4096
    LL_INIT_FREE = 0


cdef class LLFreeAllocator(Allocator):
    """
    LLFree's C port over frames that are only numbers.

    :param path: the shared library.
    :param frames: how many frames it manages.
    :param cores: how many threads will use it, each with a reservation of its own.
    :raises OSError: the library can't be loaded.
    :raises ValueError: it is not a version whose interface is known.
    """

    cdef void* library
    cdef void* blocks[4]
    cdef ll_classing classing
    cdef ll_drain_fn drain_fn

    def __cinit__(self, path, uint64_t frames, int cores):
        cdef ll_meta meta
        cdef ll_meta_size sizes
        cdef ll_result done
        cdef int i
        self.name = "llfree"
        self.library = dlopen(str(path).encode(), RTLD_NOW | RTLD_LOCAL)
        if self.library == NULL:
            raise OSError(dlerror().decode())
        # llfree_change_tree came with the interface that is declared in alloc.pxd.
        self.symbol(b"llfree_change_tree")
        self.t.get = <ll_get_fn>self.symbol(b"llfree_get")
        self.t.put = <ll_put_fn>self.symbol(b"llfree_put")
        self.drain_fn = <ll_drain_fn>self.symbol(b"llfree_drain")

        memset(&self.classing, 0, sizeof(self.classing))
        for i in range(2):
            self.classing.classes[i].klass = i
            self.classing.classes[i].count = cores
        self.classing.num_classes = 2
        self.classing.default_class = 1
        self.classing.policy = ll_two_classes

        sizes = (<ll_meta_size_fn>self.symbol(b"llfree_metadata_size"))(&self.classing, frames)
        self.blocks[0] = touched_block(sizes.llfree)
        self.blocks[1] = meta.local = touched_block(sizes.local)
        self.blocks[2] = meta.trees = touched_block(sizes.trees)
        self.blocks[3] = meta.lower = touched_block(sizes.lower)
        for i in range(4):
            if self.blocks[i] == NULL:
                raise MemoryError
        done = (<ll_init_fn>self.symbol(b"llfree_init"))(
            self.blocks[0], frames, LL_INIT_FREE, meta, &self.classing)
        if done.error or (<ll_frames_fn>self.symbol(b"llfree_frames"))(self.blocks[0]) != frames:
            raise ValueError(f"{path}: llfree_init failed; not the interface that is known here?")
        self.t.kind = LLFREE
        self.t.self = self.blocks[0]

    cdef void* symbol(self, const char* name) except NULL:
        cdef void* found = dlsym(self.library, name)
        if found == NULL:
            raise ValueError(f"no {name.decode()} in it: another version of LLFree's interface")
        return found

    cdef void drain(self) noexcept nogil:
        self.drain_fn(self.t.self)

    def __dealloc__(self):
        cdef int i
        for i in range(4):
            free(self.blocks[i])
        if self.library != NULL:
            dlclose(self.library)
