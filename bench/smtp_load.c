/* Sends mails by SMTP, for as little of the processor's time as can be: the server is what is to be measured.
 *
 * smtp_load [-l] [-p] [-n RECIPIENTS] [-r RATE] PORT CONNECTIONS MAILS PER_CONNECTION SIZE
 *
 * So many connections to 127.0.0.1 at once, each for PER_CONNECTION mails and then followed by another one, until MAILS are
 * sent. What is sent next is sent when all replies to what was sent before are there. A reply that is no success ends it all.
 *
 * -l  speaks LMTP, in which each recipient has a reply to the message
 * -p  sends MAIL, RCPT and DATA in one go
 * -n  so many recipients a mail, 1 unless this is given
 * -r  so many mails a second begin, whatever became of those before, on the connections that have none; where they all have
 *     one, what is due waits, and that counts. Prints the time of each mail, in ns, from when it was due until its last reply.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <err.h>
#include <netinet/tcp.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/timerfd.h>
#include <time.h>
#include <unistd.h>

typedef struct {
    const char *text;
    size_t size;
    int replies;
} Turn;

typedef struct {
    int fd;
    int turn;    /* the one whose replies are awaited */
    int replies; /* so many of them */
    int place;   /* in a line of a reply */
    long mails;  /* that it has begun */
    int64_t due; /* when the one that it has was */
    bool idle;   /* it has none, and waits until one is due */
} Connection;

#define TURN(text, replies) {text, sizeof(text) - 1, replies}

enum { GREETING, EHLO, FIRST, RCPT, DATA, MESSAGE, QUIT };
static Turn turns[] = {
    TURN("", 1),
    TURN("EHLO client.example\r\n", 1),
    TURN("MAIL FROM:<sender@example.org>\r\n", 1),
    {NULL, 0, 1}, /* RCPT, for each recipient */
    TURN("DATA\r\n", 1),
    {NULL, 0, 1}, /* the message */
    TURN("QUIT\r\n", 1),
};

static struct sockaddr_in server = {.sin_family = AF_INET};
static int poller;
static long open_mails, per_connection; /* mails that no connection has begun yet */
static int first = FIRST, open_connections, recipients = 1;
static int64_t interval, next_due; /* ns; 0: mails are due at once */
static int clock_fd = -1;
static Connection **idle; /* a stack */
static int idle_connections;

static int64_t now(void)
{
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return time.tv_sec * INT64_C(1000000000) + time.tv_nsec;
}

static void make_recipients(void)
{
    char *text = malloc(recipients * 64), *at = text;
    for (int i = 0; i < recipients; i++)
        at += sprintf(at, "RCPT TO:<recipient%d@example.org>\r\n", i);
    turns[RCPT] = (Turn){text, at - text, recipients};
}

static void make_message(size_t size)
{
    static const char head[] = "From: sender@example.org\r\nSubject: a mail\r\n\r\n", end[] = ".\r\n";
    char *text = malloc(size + sizeof(head) + sizeof(end));
    size_t at = sizeof(head) - 1;
    memcpy(text, head, at);
    while (at < size) {
        size_t line = size - at > 72 ? 72 : size - at > 2 ? size - at : 3;
        memset(text + at, 'x', line - 2);
        memcpy(text + at + line - 2, "\r\n", 2);
        at += line;
    }
    memcpy(text + at, end, sizeof(end) - 1);
    turns[MESSAGE].text = text;
    turns[MESSAGE].size = at + sizeof(end) - 1;
}

static void pipeline(void)
{
    char *commands = calloc(1, turns[FIRST].size + turns[RCPT].size + turns[DATA].size + 1);
    first = DATA;
    for (int i = FIRST; i <= first; i++)
        strcat(commands, turns[i].text);
    turns[first] = (Turn){commands, strlen(commands), recipients + 2};
}

static void begin(Connection *connection)
{
    int on = 1;
    int fd = socket(AF_INET, SOCK_STREAM, 0);
    if (fd < 0 || connect(fd, (struct sockaddr *)&server, sizeof(server)) < 0)
        err(1, "connect");
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on));
    *connection = (Connection){.fd = fd, .turn = GREETING, .replies = 1};
    struct epoll_event event = {.events = EPOLLIN, .data.ptr = connection};
    if (epoll_ctl(poller, EPOLL_CTL_ADD, fd, &event) < 0)
        err(1, "epoll_ctl");
    open_connections++;
}

static void end(Connection *connection)
{
    close(connection->fd);
    open_connections--;
    if (open_mails > 0)
        begin(connection);
}

static void take_turn(Connection *connection)
{
    if (connection->turn == QUIT) {
        end(connection);
        return;
    }
    int turn = connection->turn + 1;
    if (connection->turn == MESSAGE && interval)
        printf("%lld\n", (long long)(now() - connection->due));
    if (turn == FIRST || turn == QUIT) {
        bool more = open_mails > 0 && connection->mails < per_connection;
        if (more && interval) {
            if (now() < next_due) { /* or it begins at once, late */
                connection->turn = EHLO;
                connection->idle = true;
                idle[idle_connections++] = connection;
                return;
            }
            connection->due = next_due;
            next_due += interval;
        }
        turn = more ? first : QUIT;
        open_mails -= more;
        connection->mails += more;
    }
    connection->turn = turn;
    connection->replies = turns[turn].replies;
    if (send(connection->fd, turns[turn].text, turns[turn].size, MSG_NOSIGNAL) != (ssize_t)turns[turn].size)
        err(1, "send");
}

static void receive(Connection *connection)
{
    char buffer[4096];
    ssize_t size = recv(connection->fd, buffer, sizeof(buffer), 0);
    if (size <= 0)
        err(1, "recv");
    for (char *at = buffer; at < buffer + size; at++) {
        if (connection->place == 0 && *at != '2' && *at != '3')
            errx(1, "refused: %.*s", (int)(buffer + size - at), at);
        if (connection->place == 3 && *at == ' ')
            connection->replies--;
        connection->place = *at == '\n' ? 0 : connection->place + 1;
    }
    if (connection->replies == 0 && connection->place == 0)
        take_turn(connection);
}

static void keep_time(void)
{
    struct itimerspec ticks = {.it_interval.tv_nsec = 200000, .it_value.tv_nsec = 200000};
    struct epoll_event event = {.events = EPOLLIN, .data.ptr = NULL};
    clock_fd = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK);
    if (clock_fd < 0 || timerfd_settime(clock_fd, 0, &ticks, NULL) < 0 || epoll_ctl(poller, EPOLL_CTL_ADD, clock_fd, &event) < 0)
        err(1, "timerfd");
}

/* Begin the mails that are due, on connections that have none, and end those that are not needed any more. */
static void tick(void)
{
    uint64_t ticks;
    if (read(clock_fd, &ticks, sizeof(ticks)) < 0)
        return;
    while (idle_connections > 0 && (open_mails == 0 || now() >= next_due)) {
        Connection *connection = idle[--idle_connections];
        connection->idle = false;
        take_turn(connection);
    }
}

int main(int count, char **arguments)
{
    bool lmtp = false, pipelined = false;
    int option;
    while ((option = getopt(count, arguments, "lpn:r:")) != -1) {
        if (option == 'l')
            lmtp = true;
        else if (option == 'p')
            pipelined = true;
        else if (option == 'n')
            recipients = atoi(optarg);
        else if (option == 'r')
            interval = 1e9 / atof(optarg);
        else
            return 2;
    }
    if (count - optind != 5)
        errx(2, "five arguments are needed");
    arguments += optind;
    int connections = atoi(arguments[1]);
    server.sin_port = htons(atoi(arguments[0]));
    server.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    open_mails = atol(arguments[2]);
    per_connection = atol(arguments[3]);
    make_message(atol(arguments[4]));
    make_recipients();
    if (lmtp) {
        turns[EHLO] = (Turn)TURN("LHLO client.example\r\n", 1);
        turns[MESSAGE].replies = recipients;
    }
    if (pipelined)
        pipeline();
    poller = epoll_create1(0);
    if (interval) {
        keep_time();
        next_due = now();
    }
    idle = calloc(connections, sizeof(*idle));
    Connection *all = calloc(connections, sizeof(Connection));
    for (int i = 0; i < connections; i++)
        begin(&all[i]);
    while (open_connections > 0) {
        struct epoll_event events[64];
        int ready = epoll_wait(poller, events, 64, -1);
        for (int i = 0; i < ready; i++)
            if (events[i].data.ptr)
                receive(events[i].data.ptr);
            else
                tick();
    }
    return 0;
}
