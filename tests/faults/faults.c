/* Preloaded into the command: what it does with files on a disk fails, or waits.
 *
 * The file that $FAULTS names says how, by "CALL NUMBER": CALL is write, of files alone, or sync, which is fsync, fdatasync and
 * syncfs; NUMBER is the errno, or 0: wait as long as it says so, and make the file $FAULTS.reached. Without the file all works.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

/* The errno of this call, 0 if it works, -1 if it waits. */
static int fault(const char *call) {
    const char *path = getenv("FAULTS");
    char text[32] = "", name[16] = "";
    int number = 0, fd = path ? open(path, O_RDONLY | O_CLOEXEC) : -1;
    if (fd < 0) return 0;
    ssize_t size = read(fd, text, sizeof text - 1);
    close(fd);
    if (size <= 0 || sscanf(text, "%15s %d", name, &number) != 2 || strcmp(name, call) != 0) return 0;
    return number ? number : -1;
}

static int fails(const char *call) {
    char reached[4096];
    int number;
    while ((number = fault(call)) < 0) {
        snprintf(reached, sizeof reached, "%s.reached", getenv("FAULTS"));
        close(open(reached, O_WRONLY | O_CREAT | O_CLOEXEC, 0600));
        usleep(1000);
    }
    errno = number;
    return number != 0;
}

#define REAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))

int fsync(int fd) { return fails("sync") ? -1 : REAL(fsync)(fd); }
int fdatasync(int fd) { return fails("sync") ? -1 : REAL(fdatasync)(fd); }
int syncfs(int fd) { return fails("sync") ? -1 : REAL(syncfs)(fd); }

ssize_t write(int fd, const void *data, size_t size) {
    struct stat about;
    if (fd > 2 && fstat(fd, &about) == 0 && S_ISREG(about.st_mode) && fails("write")) return -1;
    return REAL(write)(fd, data, size);
}
