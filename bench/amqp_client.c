/* A client of RabbitMQ on librabbitmq: what the bench compares with.

   amqp_client publish|consume|relay PORT QUEUE

   publish: reads lines of COUNT SIZE, and answers each with a line when so many messages of that size are confirmed.
   consume: takes messages for ever, and acknowledges each hundred together.
   relay: from QUEUE to QUEUE.to, for ever. Two connections, as one that publishes is not read while the broker is low on memory.
   A message is acknowledged when the broker has confirmed its copy: all that can be together. */

#include <amqp.h>
#include <amqp_tcp_socket.h>
#include <poll.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define WINDOW 1000
#define GROUP 100
#define RING 1024
#define HEAD "Subject: x\r\n\r\n"
#define HEAD_SIZE ((long)sizeof HEAD - 1)

static void check(int good, const char *what)
{
    if (!good) {
        fprintf(stderr, "amqp_client: %s failed\n", what);
        exit(1);
    }
}

static amqp_connection_state_t open_connection(int port)
{
    amqp_connection_state_t connection = amqp_new_connection();
    amqp_socket_t *socket = amqp_tcp_socket_new(connection);
    check(socket != NULL && amqp_socket_open(socket, "127.0.0.1", port) == 0, "the connection");
    check(amqp_login(connection, "/", 0, 131072, 0, AMQP_SASL_METHOD_PLAIN, "guest", "guest").reply_type
              == AMQP_RESPONSE_NORMAL, "the login");
    amqp_channel_open(connection, 1);
    check(amqp_get_rpc_reply(connection).reply_type == AMQP_RESPONSE_NORMAL, "the channel");
    return connection;
}

/* Whether there is more to read without waiting for the socket. */
static int has_more(amqp_connection_state_t connection)
{
    return amqp_frames_enqueued(connection) || amqp_data_in_buffer(connection);
}

/* Wait until there is something to read, unless there is more already. */
static void wait_for(amqp_connection_state_t connection)
{
    struct pollfd one = {amqp_get_sockfd(connection), POLLIN, 0};
    if (!has_more(connection))
        check(poll(&one, 1, -1) > 0, "waiting");
}

static void begin_to_consume(amqp_connection_state_t in, amqp_bytes_t queue)
{
    amqp_basic_qos(in, 1, 0, WINDOW, 0);
    amqp_basic_consume(in, 1, queue, amqp_empty_bytes, 0, 0, 0, amqp_empty_table);
    check(amqp_get_rpc_reply(in).reply_type == AMQP_RESPONSE_NORMAL, "consuming");
}

/* Whether there was a message to read without waiting. */
static int take_delivery(amqp_connection_state_t in, amqp_envelope_t *envelope)
{
    struct timeval none = {0, 0};
    amqp_maybe_release_buffers(in);
    amqp_rpc_reply_t reply = amqp_consume_message(in, envelope, &none, 0);
    if (reply.reply_type == AMQP_RESPONSE_NORMAL)
        return 1;
    check(reply.library_error == AMQP_STATUS_TIMEOUT, "reading");
    return 0;
}

static void consume(int port, amqp_bytes_t queue)
{
    amqp_connection_state_t in = open_connection(port);
    amqp_envelope_t envelope;
    begin_to_consume(in, queue);
    for (long taken = 0;; wait_for(in))
        while (take_delivery(in, &envelope)) {
            if (++taken % GROUP == 0)
                check(amqp_basic_ack(in, 1, envelope.delivery_tag, 1) == 0, "an ack");
            amqp_destroy_envelope(&envelope);
        }
}

static uint64_t published, confirmed; /* tags: of the last publish; and up to here all are confirmed */
static uint64_t tags[RING];           /* of the delivery that each publish is the copy of */
static char is_confirmed[RING];

static void publish_once(amqp_connection_state_t out, amqp_bytes_t to, amqp_basic_properties_t *properties, amqp_bytes_t body)
{
    properties->_flags |= AMQP_BASIC_DELIVERY_MODE_FLAG;
    properties->delivery_mode = 2;
    check(amqp_basic_publish(out, 1, amqp_empty_bytes, to, 1, 0, properties, body) == 0, "publishing");
    is_confirmed[++published % RING] = 0;
}

/* Of what was published, take what is confirmed by now. */
static void take_confirms(amqp_connection_state_t out)
{
    struct timeval none = {0, 0};
    amqp_frame_t frame;
    int status;
    while ((status = amqp_simple_wait_frame_noblock(out, &frame, &none)) == AMQP_STATUS_OK) {
        check(frame.frame_type == AMQP_FRAME_METHOD && frame.payload.method.id == AMQP_BASIC_ACK_METHOD, "a confirm");
        amqp_basic_ack_t *ack = frame.payload.method.decoded;
        for (uint64_t tag = ack->multiple ? confirmed + 1 : ack->delivery_tag; tag <= ack->delivery_tag; tag++)
            is_confirmed[tag % RING] = 1;
        while (confirmed < published && is_confirmed[(confirmed + 1) % RING])
            confirmed++;
        amqp_maybe_release_buffers(out);
    }
    check(status == AMQP_STATUS_TIMEOUT, "reading confirms");
}

static amqp_table_entry_t text_field(const char *name, const char *text)
{
    amqp_table_entry_t entry = {amqp_cstring_bytes(name), {.kind = AMQP_FIELD_KIND_UTF8}};
    entry.value.value.bytes = amqp_cstring_bytes(text);
    return entry;
}

static void publish(int port, amqp_bytes_t queue)
{
    amqp_connection_state_t out = open_connection(port);
    amqp_table_entry_t known[2] = {text_field("envelope", "sender@example.org"), text_field("recipient", "recipient@example.org")};
    amqp_basic_properties_t properties = {
        ._flags = AMQP_BASIC_CONTENT_TYPE_FLAG | AMQP_BASIC_MESSAGE_ID_FLAG | AMQP_BASIC_HEADERS_FLAG,
        .content_type = amqp_cstring_bytes("message/rfc822"),
        .headers = {2, known},
    };
    char line[64], id[33];
    long count, size;
    amqp_confirm_select(out, 1);
    while (fgets(line, sizeof line, stdin) != NULL) {
        check(sscanf(line, "%ld %ld", &count, &size) == 2 && size >= HEAD_SIZE, "reading a line");
        amqp_bytes_t body = {size, malloc(size)};
        check(body.bytes != NULL, "having memory for a body");
        memcpy(memset(body.bytes, '.', size), HEAD, HEAD_SIZE);
        for (uint64_t end = published + count; confirmed < end;) {
            while (published < end && published - confirmed < WINDOW) {
                snprintf(id, sizeof id, "%032lx", (unsigned long)published);
                properties.message_id = amqp_cstring_bytes(id);
                publish_once(out, queue, &properties, body);
            }
            wait_for(out);
            take_confirms(out);
        }
        free(body.bytes);
        check(puts("done") >= 0 && fflush(stdout) == 0, "saying so");
    }
}

static void relay(int port, amqp_bytes_t queue, amqp_bytes_t to)
{
    amqp_connection_state_t in = open_connection(port), out = open_connection(port);
    struct pollfd both[2] = {{amqp_get_sockfd(in), POLLIN, 0}, {amqp_get_sockfd(out), POLLIN, 0}};
    amqp_envelope_t envelope;
    amqp_confirm_select(out, 1);
    begin_to_consume(in, queue);
    for (;;) {
        if (!has_more(in) && !has_more(out))
            check(poll(both, 2, -1) > 0, "waiting");
        while (take_delivery(in, &envelope)) {
            publish_once(out, to, &envelope.message.properties, envelope.message.body);
            tags[published % RING] = envelope.delivery_tag;
            amqp_destroy_envelope(&envelope);
        }
        uint64_t before = confirmed;
        take_confirms(out);
        if (confirmed > before)
            check(amqp_basic_ack(in, 1, tags[confirmed % RING], 1) == 0, "an ack");
    }
}

int main(int argc, char **argv)
{
    char to[256];
    check(argc == 4, "reading the arguments");
    int port = atoi(argv[2]);
    amqp_bytes_t queue = amqp_cstring_bytes(argv[3]);
    snprintf(to, sizeof to, "%s.to", argv[3]);
    if (strcmp(argv[1], "publish") == 0)
        publish(port, queue);
    else if (strcmp(argv[1], "consume") == 0)
        consume(port, queue);
    else
        relay(port, queue, amqp_cstring_bytes(to));
    return 0;
}
