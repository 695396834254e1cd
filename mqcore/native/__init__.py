"""Native plugins: shared objects in C, the functions of `mqcore.h` that they call, and the part of a tick without the GIL."""
