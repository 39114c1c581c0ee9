# What the faces of processes ask before they do anything.
cdef int raise_pending() except -1      # this thread's forbidden accesses, if there are any
cdef int check_owner() except -1        # SIGSEGV is still ours; else take it back and say so
