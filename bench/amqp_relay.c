/* A relay from one queue of RabbitMQ to another, on librabbitmq: what the bench compares with.

   amqp_relay PORT QUEUE: from QUEUE to QUEUE.to, for ever. Two connections, as one that publishes is not read while the broker is
   low on memory. A message is acknowledged when the broker has confirmed its copy: all that can be together. */

#include <amqp.h>
#include <amqp_tcp_socket.h>
#include <poll.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define WINDOW 1000
#define RING 1024

static void check(int good, const char *what)
{
    if (!good) {
        fprintf(stderr, "amqp_relay: %s failed\n", what);
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

static uint64_t published, confirmed; /* tags: of the last publish; and up to here all are confirmed */
static uint64_t tags[RING];           /* of the delivery that each publish is the copy of */
static char is_confirmed[RING];

/* Publish the copies of what has come. */
static void take_deliveries(amqp_connection_state_t in, amqp_connection_state_t out, amqp_bytes_t to)
{
    struct timeval none = {0, 0};
    amqp_envelope_t envelope;
    for (;;) {
        amqp_maybe_release_buffers(in);
        amqp_rpc_reply_t reply = amqp_consume_message(in, &envelope, &none, 0);
        if (reply.reply_type != AMQP_RESPONSE_NORMAL) {
            check(reply.library_error == AMQP_STATUS_TIMEOUT, "reading");
            return;
        }
        envelope.message.properties._flags |= AMQP_BASIC_DELIVERY_MODE_FLAG;
        envelope.message.properties.delivery_mode = 2;
        check(amqp_basic_publish(out, 1, amqp_empty_bytes, to, 1, 0, &envelope.message.properties, envelope.message.body) == 0,
              "publishing");
        tags[++published % RING] = envelope.delivery_tag;
        is_confirmed[published % RING] = 0;
        amqp_destroy_envelope(&envelope);
    }
}

/* Acknowledge what is confirmed. */
static void take_confirms(amqp_connection_state_t in, amqp_connection_state_t out)
{
    struct timeval none = {0, 0};
    amqp_frame_t frame;
    uint64_t before = confirmed;
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
    if (confirmed > before)
        check(amqp_basic_ack(in, 1, tags[confirmed % RING], 1) == 0, "an ack");
}

int main(int argc, char **argv)
{
    char to[256];
    check(argc == 3, "reading the arguments");
    snprintf(to, sizeof to, "%s.to", argv[2]);
    amqp_connection_state_t in = open_connection(atoi(argv[1])), out = open_connection(atoi(argv[1]));
    amqp_confirm_select(out, 1);
    amqp_basic_qos(in, 1, 0, WINDOW, 0);
    amqp_basic_consume(in, 1, amqp_cstring_bytes(argv[2]), amqp_empty_bytes, 0, 0, 0, amqp_empty_table);
    check(amqp_get_rpc_reply(in).reply_type == AMQP_RESPONSE_NORMAL, "consuming");
    struct pollfd both[2] = {{amqp_get_sockfd(in), POLLIN, 0}, {amqp_get_sockfd(out), POLLIN, 0}};
    for (;;) {
        if (!has_more(in) && !has_more(out))
            check(poll(both, 2, -1) > 0, "waiting");
        take_deliveries(in, out, amqp_cstring_bytes(to));
        take_confirms(in, out);
    }
}
