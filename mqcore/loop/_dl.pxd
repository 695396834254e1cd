# Of the dynamic linker.

cdef extern from "dlfcn.h" nogil:
    ctypedef struct Dl_info:
        const char *dli_fname
    void *dlopen(const char *, int)
    void *dlsym(void *, const char *)
    int dlclose(void *)
    const char *dlerror()
    int dladdr(const void *, Dl_info *)
    int RTLD_GLOBAL, RTLD_LAZY, RTLD_LOCAL, RTLD_NOLOAD, RTLD_NOW
    void *RTLD_DEFAULT
