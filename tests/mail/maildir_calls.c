/* Preloaded into maildir_calls.py: calls of the system that a Maildir is written by fail, are interrupted, write a part or end
 * the process, when that says so; and it can ask which were made. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <string.h>
#include <unistd.h>

static char failing[16], made[4096];
static int from, times, error, counts;

/* From the next AT-th call of this name on, or any with "", so many fail with this errno, and all with TIMES 0; with -1 the process
 * ends, with -2 a write writes one byte. */
void fail_at(const char *call, int at, int number, int how_often) {
    strcpy(failing, call);
    from = at, error = number, times = how_often, counts = 1;
    made[0] = 0;
}

const char *calls_made(void) { return made; }

static int fault(const char *call) {
    if (!counts) return 0;
    if (strlen(made) < sizeof made - 32) strcat(strcat(made, call), " ");
    if ((*failing && strcmp(failing, call) != 0) || --from > 0 || (times && from <= -times)) return 0;
    return error;
}

#define REAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))
#define CALL(name, ...)                              \
    int number = fault(#name);                       \
    if (number == -1) _exit(9);                      \
    if (number > 0) return errno = number, -1;       \
    return REAL(name)(__VA_ARGS__);

static int make(int folder, const char *path, int flags, int mode, int (*real)(int, const char *, int, ...)) {
    int number = flags & O_CREAT ? fault("open") : 0;
    if (number == -1) _exit(9);
    if (number > 0) return errno = number, -1;
    return real(folder, path, flags, mode);
}

static int mode_of(int flags, va_list more) { return flags & O_CREAT ? va_arg(more, int) : 0; }

#define OPEN(name)                                             \
    int name(int folder, const char *path, int flags, ...) {   \
        va_list more;                                          \
        va_start(more, flags);                                 \
        int mode = mode_of(flags, more);                       \
        va_end(more);                                          \
        return make(folder, path, flags, mode, REAL(name));    \
    }
OPEN(openat)
OPEN(openat64)

ssize_t write(int fd, const void *data, size_t size) {
    int number = fd > 2 ? fault("write") : 0;
    if (number > 0) return errno = number, -1;
    if (number < 0) size = number == -1 ? size / 2 : size > 0;
    ssize_t written = REAL(write)(fd, data, size);
    if (number == -1) _exit(9);
    return written;
}

int fsync(int fd) { CALL(fsync, fd) }
int syncfs(int fd) { CALL(syncfs, fd) }
int renameat2(int from_folder, const char *file, int to_folder, const char *name, unsigned int flags) {
    CALL(renameat2, from_folder, file, to_folder, name, flags)
}
int linkat(int from_folder, const char *file, int to_folder, const char *name, int flags) {
    CALL(linkat, from_folder, file, to_folder, name, flags)
}
