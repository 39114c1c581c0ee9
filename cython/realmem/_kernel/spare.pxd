# Host VMAs held back for the moment when the host's limit is reached: at the limit even the
# mmap() that would give some back is refused.  Signal-safe.

# Hold them back; nothing where they are, or where the host has none to give.
cdef void spare_take() noexcept nogil
# Give them up.
cdef void spare_drop() noexcept nogil
# In the child of os.fork(): the lock may have been held.
cdef void spare_after_fork() noexcept nogil
