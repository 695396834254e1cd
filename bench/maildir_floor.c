/* Stores mails in a Maildir by the calls of the system that it takes, and nothing else.
 *
 * maildir_floor MAILDIR MAILS GROUP SIZE
 *
 * A group is written to tmp/ and brought to the disk, by one syncfs where there are four and more, each file gets its name in new/,
 * and new/ is brought to the disk: what mqcore promises of a group, and how. Prints the ns of user and of system time a mail.
 */
#define _GNU_SOURCE
#include <err.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

static int folder(const char *maildir, const char *name) {
    char path[4096];
    snprintf(path, sizeof path, "%s/%s", maildir, name);
    mkdir(path, 0700);
    int fd = open(path, O_RDONLY | O_DIRECTORY | O_NOFOLLOW);
    if (fd < 0) err(1, "%s", path);
    return fd;
}

static void write_file(int tmp, const char *name, const char *mail, size_t size, int syncs) {
    struct timespec times[2] = {{1700000000, 0}, {1700000000, 0}};
    int fd = openat(tmp, name, O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0600);
    if (fd < 0 || write(fd, mail, size) != (ssize_t)size || futimens(fd, times) != 0 || (syncs && fsync(fd) != 0) || close(fd) != 0)
        err(1, "%s", name);
}

static double taken(struct timeval before, struct timeval after, long mails) {
    return ((after.tv_sec - before.tv_sec) * 1e9 + (after.tv_usec - before.tv_usec) * 1e3) / mails;
}

int main(int argc, char **argv) {
    if (argc != 5) errx(2, "maildir_floor MAILDIR MAILS GROUP SIZE");
    long mails = atol(argv[2]), group = atol(argv[3]);
    size_t size = atol(argv[4]);
    char *mail = memset(malloc(size), 'x', size), name[256], file[64];
    mkdir(argv[1], 0700);
    int tmp = folder(argv[1], "tmp"), new = folder(argv[1], "new");
    struct rusage before, after;
    getrusage(RUSAGE_SELF, &before);
    for (long first = 0; first < mails; first += group) {
        for (long at = first; at < first + group; at++) {
            snprintf(file, sizeof file, "Q%032lx.mqcore.0123456789abcdef.%ld", at, at);
            write_file(tmp, file, mail, size, group < 4);
        }
        if (group >= 4 && syncfs(tmp) != 0) err(1, "syncfs");
        for (long at = first; at < first + group; at++) {
            snprintf(file, sizeof file, "Q%032lx.mqcore.0123456789abcdef.%ld", at, at);
            snprintf(name, sizeof name, "1700000000.M%012ldQ%032lx.mqcore,E=sender@example.org", at, at);
            if (renameat2(tmp, file, new, name, RENAME_NOREPLACE) != 0) err(1, "%s", name);
        }
        if (fsync(new) != 0) err(1, "new");
    }
    getrusage(RUSAGE_SELF, &after);
    printf("%.0f %.0f\n", taken(before.ru_utime, after.ru_utime, mails), taken(before.ru_stime, after.ru_stime, mails));
}
