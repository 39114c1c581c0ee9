# Nothing here is Python's.
