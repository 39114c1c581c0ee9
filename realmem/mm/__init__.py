"""Address spaces: what was promised (VMAs) and the system calls that change it."""
