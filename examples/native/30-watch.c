/* Watches a file descriptor for as long as something comes: each input starts the timeout anew, and when it runs out, the
 * watcher is stopped.
 *
 * The descriptor is that of a named pipe, at the path WATCH_PIPE of the environment. What is written to it is logged.
 * There is one watcher for each dispatcher, in the context's data.
 */
#include <fcntl.h>
#include <mqcore.h>
#include <stdlib.h>
#include <unistd.h>

#define SECONDS 5.0f

typedef struct {
    MQ_IOWatcher *watcher;
    MQ_Timer *timer;
    int fd;
} Watch;

MQ_EXPORT int mq_version(void)
{
    return MQ_API_VERSION;
}

static void input(MQ_IOWatcher *watcher, int fd, int events, void *data)
{
    Watch *watch = data;
    char line[1024];
    ssize_t size = read(fd, line, sizeof line - 1);
    (void)watcher, (void)events;
    if (size <= 0)
        return;
    line[size] = 0;
    MQ_log(MQ_INFO, line);
    MQ_resetTimer(watch->timer, SECONDS);
}

static void silence(void *data)
{
    Watch *watch = data;
    watch->timer = NULL; /* over, now that it is called */
    MQ_ioUnwatch(watch->watcher);
    watch->watcher = NULL;
    close(watch->fd);
    MQ_log(MQ_INFO, "nothing came for a while");
}

MQ_EXPORT void mq_context_initialize(MQ_Context *context)
{
    const char *path = getenv("WATCH_PIPE");
    Watch *watch = calloc(1, sizeof *watch);
    if (watch == NULL || path == NULL || (watch->fd = open(path, O_RDWR | O_NONBLOCK)) < 0) {
        free(watch);
        return;
    }
    MQ_setContextData(context, watch);
    watch->watcher = MQ_ioWatch(context, watch->fd, MQ_READ, input, watch);
    watch->timer = MQ_startTimer(context, SECONDS, silence, watch);
}

MQ_EXPORT void mq_context_cleanup(MQ_Context *context)
{
    Watch *watch = MQ_contextData(context);
    if (watch == NULL)
        return;
    if (watch->watcher != NULL) {
        MQ_ioUnwatch(watch->watcher);
        close(watch->fd);
    }
    if (watch->timer != NULL)
        MQ_stopTimer(watch->timer);
    free(watch);
}
