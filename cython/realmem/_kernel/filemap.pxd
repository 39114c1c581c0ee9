# Files: frames that hold their bytes, read at the first fault and written back when asked.
# Signal-safe: a descriptor is read and written by bare system calls.
# Compare mm/filemap.c, mm/page-writeback.c.
from libc.stdint cimport int64_t, uint64_t

from realmem._kernel.mm_types cimport address_space
from realmem.types cimport page

# The frame of a page with a reference more; read with `make`, and with it what is missing of the
# 64 KiB around it: NULL with rc_ret FAULT_SIGBUS (behind the end, or the file cannot be read)
# or FAULT_OOM, or FAULT_OK when there is none and none was to be read.
# Mirrors: filemap_fault(), do_sync_mmap_readahead().
cdef page* filemap_get_page(address_space* object, uint64_t index, int nid, bint make,
                            int* rc_ret, bint* read_ret) noexcept nogil

# A process is about to store to a frame that it maps shared: the file gets a place for it.
# Mirrors: filemap_page_mkwrite(), ext4_page_mkwrite().
# Returns: FAULT_OK; FAULT_SIGBUS: behind the end, or no space.
cdef int filemap_mkwrite(address_space* object, page* p) noexcept nogil

# Write the changed frames of pages [first, last] to the file; stores that come later change
# them again.  What cannot be written stays changed.
# Context: no mm.lock held.
# Mirrors: write_cache_pages(), folio_clear_dirty_for_io().
# Returns: 0 or -errno.
cdef int filemap_write_back(address_space* object, uint64_t first, uint64_t last) noexcept nogil

# Look at the file: what is behind its end goes, private copies too, and what somebody else may
# have written is read anew; frames that were changed here stay.
# Context: no mm.lock held.
# Returns: 0 or -errno of fstat().
cdef int filemap_look(address_space* object) noexcept nogil

# Read pages [first, last] ahead, as far as that costs nobody anything.
# Mirrors: force_page_cache_readahead().
cdef void filemap_read_ahead(address_space* object, uint64_t first, uint64_t last,
                             int nid) noexcept nogil

# Make a hole in the file, and in its frames.
# Context: no mm.lock held.
# Mirrors: vfs_fallocate(FALLOC_FL_PUNCH_HOLE).
# Returns: 0 or -errno.
cdef int filemap_punch(address_space* object, uint64_t first, uint64_t last) noexcept nogil

# Its changed frames in pages [first, last].
cdef int64_t filemap_dirty(address_space* object, uint64_t first, uint64_t last) noexcept nogil
