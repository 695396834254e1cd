/* Asks a server whether a login is good, without blocking: a socket, a watcher on it, and a timer for when no answer comes.
 *
 * The server is at the path LOGIN_SOCKET of the environment, a Unix socket. It is sent "LOGIN PASSWORD\n" and answers
 * "yes" or something else. For each lookup there is a struct, which the callbacks get, and which is freed when watcher and
 * timer are stopped and control is given back. The context has a list of them, for those that are left when it ends.
 */
#include <errno.h>
#include <fcntl.h>
#include <mqcore.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#define SECONDS 5.0f

typedef struct Lookup {
    struct Lookup *next, *previous;
    MQ_Context *context;
    MQ_Connection *connection; /* what to give back */
    MQ_IOWatcher *watcher;
    MQ_Timer *timer;
    int fd;
} Lookup;

MQ_EXPORT int mq_version(void)
{
    return MQ_API_VERSION;
}

static void begin(Lookup *lookup)
{
    lookup->next = MQ_contextData(lookup->context);
    if (lookup->next != NULL)
        lookup->next->previous = lookup;
    MQ_setContextData(lookup->context, lookup);
}

static void end(Lookup *lookup)
{
    if (lookup->next != NULL)
        lookup->next->previous = lookup->previous;
    if (lookup->previous != NULL)
        lookup->previous->next = lookup->next;
    else
        MQ_setContextData(lookup->context, lookup->next);
    close(lookup->fd);
    free(lookup);
}

/* Watchers and timers end with the context by themselves. */
MQ_EXPORT void mq_context_cleanup(MQ_Context *context)
{
    Lookup *lookup;
    while ((lookup = MQ_contextData(context)) != NULL)
        end(lookup);
}

/* Ends a lookup, and gives the connection to the next plugin. */
static void finish(Lookup *lookup, bool good)
{
    if (lookup->timer != NULL)
        MQ_stopTimer(lookup->timer);
    if (lookup->watcher != NULL)
        MQ_ioUnwatch(lookup->watcher); /* before the descriptor is closed */
    if (good)
        MQ_setAuthenticated(lookup->connection, true); /* while the plugin has control */
    MQ_continue(lookup->connection);
    end(lookup);
}

static void answered(MQ_IOWatcher *watcher, int fd, int events, void *data)
{
    char answer[16];
    ssize_t size = events == 0 ? 0 : read(fd, answer, sizeof answer);
    (void)watcher;
    if (size < 0 && (errno == EAGAIN || errno == EINTR))
        return; /* called again when there is more */
    finish(data, size >= 3 && memcmp(answer, "yes", 3) == 0);
}

static void too_late(void *data)
{
    Lookup *lookup = data;
    lookup->timer = NULL; /* over, now that it is called */
    MQ_log(MQ_WARN, "no answer of the login server");
    finish(lookup, false);
}

/* A connection to the login server, with the question sent; -1 when there is none, or only after waiting for it. */
static int ask(const char *login, size_t loginsize, const char *passwd, size_t passwdsize)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    const char *path = getenv("LOGIN_SOCKET");
    char question[512];
    int size = snprintf(question, sizeof question, "%.*s %.*s\n", (int)loginsize, login, (int)passwdsize, passwd);
    int fd = socket(AF_UNIX, SOCK_STREAM, 0);
    if (path != NULL && strlen(path) < sizeof address.sun_path)
        strcpy(address.sun_path, path);
    if (fd >= 0 && fcntl(fd, F_SETFL, O_NONBLOCK) == 0 && size < (int)sizeof question
        && connect(fd, (struct sockaddr *)&address, sizeof address) == 0
        && send(fd, question, size, MSG_NOSIGNAL) == size)
        return fd;
    if (fd >= 0)
        close(fd);
    return -1;
}

MQ_EXPORT bool mq_smtp_in_authenticate(MQ_Context *context, MQ_Connection *connection, const char *login, size_t loginsize,
                                       const char *passwd, size_t passwdsize)
{
    Lookup *lookup = calloc(1, sizeof *lookup);
    if (lookup == NULL)
        return false;
    lookup->fd = ask(login, loginsize, passwd, passwdsize);
    if (lookup->fd < 0) {
        MQ_log(MQ_ERROR, "no connection to the login server");
        free(lookup);
        return false;
    }
    lookup->context = context;
    lookup->connection = connection;
    begin(lookup);
    lookup->watcher = MQ_ioWatch(context, lookup->fd, MQ_READ, answered, lookup);
    lookup->timer = MQ_startTimer(context, SECONDS, too_late, lookup);
    return true; /* control is the plugin's, until finish() */
}
