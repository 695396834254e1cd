/* Sends mails by SMTP, for as little of the processor's time as can be: the server is what is to be measured.
 *
 * smtp_load PORT CONNECTIONS MAILS PER_CONNECTION SIZE PIPELINED
 *
 * So many connections to 127.0.0.1 at once, each for PER_CONNECTION mails and then followed by another one, until MAILS are
 * sent. What is sent next is sent when all replies to what was sent before are there; with PIPELINED other than 0, MAIL, RCPT
 * and DATA are sent in one go. A reply that is no success ends it all.
 */
#include <arpa/inet.h>
#include <err.h>
#include <netinet/tcp.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
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
} Connection;

#define TURN(text, replies) {text, sizeof(text) - 1, replies}

enum { GREETING, EHLO, FIRST, QUIT = 6 };
static Turn turns[] = {
    TURN("", 1),
    TURN("EHLO client.example\r\n", 1),
    TURN("MAIL FROM:<sender@example.org>\r\n", 1),
    TURN("RCPT TO:<recipient@example.org>\r\n", 1),
    TURN("DATA\r\n", 1),
    {NULL, 0, 1}, /* the message */
    TURN("QUIT\r\n", 1),
};

static struct sockaddr_in server = {.sin_family = AF_INET};
static int poller;
static long open_mails, per_connection; /* mails that no connection has begun yet */
static int first = FIRST, open_connections;

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
    turns[QUIT - 1].text = text;
    turns[QUIT - 1].size = at + sizeof(end) - 1;
}

static void pipeline(void)
{
    static char commands[256];
    first = QUIT - 2;
    for (int i = FIRST; i <= first; i++)
        strcat(commands, turns[i].text);
    turns[first] = (Turn){commands, strlen(commands), 3};
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
    if (turn == FIRST || turn == QUIT) {
        bool more = open_mails > 0 && connection->mails < per_connection;
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

int main(int count, char **arguments)
{
    if (count != 7)
        errx(2, "six arguments are needed");
    int connections = atoi(arguments[2]);
    server.sin_port = htons(atoi(arguments[1]));
    server.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    open_mails = atol(arguments[3]);
    per_connection = atol(arguments[4]);
    make_message(atol(arguments[5]));
    if (atoi(arguments[6]))
        pipeline();
    poller = epoll_create1(0);
    Connection *all = calloc(connections, sizeof(Connection));
    for (int i = 0; i < connections; i++)
        begin(&all[i]);
    while (open_connections > 0) {
        struct epoll_event events[64];
        int ready = epoll_wait(poller, events, 64, -1);
        for (int i = 0; i < ready; i++)
            receive(events[i].data.ptr);
    }
    return 0;
}
