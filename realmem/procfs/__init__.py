"""The kernel's text files, in the kernel's own format; one module for each family."""
