/* Greylisting: whoever sends to somebody for the first time is told to come again later (450), which mail servers do and most
 * spam does not. Who comes again after DELAY seconds may pass, and from then on without delay, until he did not come for 30 days.
 *
 *     cc -shared -fPIC -I"$(python -m mqcore include)" -o plugins/40-greylist.so 40-greylist.c
 *
 * The delay may be set in mqcore.toml:
 *
 *     [plugins.40-greylist]
 *     delay = 300
 *
 * What is known is kept in memory: a number for each network, sender and recipient, in a table of a fixed size in which new ones
 * take the place of old ones. So a flood cannot fill the memory, and nothing ever waits. Each dispatcher has a table of its own,
 * and is one thread, so there are no locks. After a restart all is forgotten; examples/plugins/70-greylist.py keeps it in a database.
 */
#include <arpa/inet.h>
#include <mqcore.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define DELAY 300.0
#define FORGET (30 * 24 * 3600.0)
#define PLACES 65536 /* a power of two; 24 bytes each */
#define NEARBY 8     /* places in which one may be */

typedef struct {
    uint64_t key;
    double first, last; /* when it came first, and last; 0: nothing is here */
} Known;

typedef struct {
    double delay;
    Known known[PLACES];
} Table;

MQ_EXPORT int mq_version(void)
{
    return MQ_API_VERSION;
}

/* The table belongs to the context: made with it, freed with it. */
MQ_EXPORT void mq_context_initialize(MQ_Context *context)
{
    const char *delay = MQ_config(context, "delay");
    Table *table = calloc(1, sizeof *table);
    if (table == NULL)
        return; /* without it, all mail passes */
    table->delay = delay == NULL ? DELAY : atof(delay);
    MQ_setContextData(context, table);
}

MQ_EXPORT void mq_context_cleanup(MQ_Context *context)
{
    free(MQ_contextData(context));
}

static double now(void)
{
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return 1 + time.tv_sec + time.tv_nsec / 1e9;
}

/* FNV-1a, begun with what `hash` was before. */
static uint64_t mix(uint64_t hash, const void *bytes, size_t size)
{
    for (const unsigned char *each = bytes; size > 0; each++, size--)
        hash = (hash ^ *each) * 0x100000001B3u;
    return hash;
}

/* Big senders come again from another address of the same network: /24 of IPv4, /64 of IPv6. */
static uint64_t mix_network(uint64_t hash, const char *peer)
{
    unsigned char address[16];
    if (inet_pton(AF_INET, peer, address) == 1)
        return mix(hash, address, 3);
    if (inet_pton(AF_INET6, peer, address) == 1)
        return mix(hash, address, 8);
    return mix(hash, peer, strlen(peer));
}

/* The sender is known at MAIL, and needed at RCPT: what belongs to a connection is kept with it, here a hash. */
MQ_EXPORT bool mq_smtp_in_mailfrom(MQ_Context *context, MQ_Connection *connection, MQ_Address *envelope)
{
    const char *peer = MQ_peer(connection);
    const char *sender = MQ_email(envelope); /* NULL for a bounce */
    uint64_t *hash = MQ_connectionData(connection);
    (void)context;
    if (hash == NULL && (hash = malloc(sizeof *hash)) == NULL) {
        MQ_fail(connection, "no memory"); /* 451: the client comes again */
        return false;
    }
    *hash = mix_network(0xCBF29CE484222325u, peer == NULL ? "" : peer);
    *hash = mix(*hash, sender == NULL ? "" : sender, sender == NULL ? 1 : strlen(sender) + 1);
    MQ_setConnectionData(connection, hash);
    return false;
}

/* The place of a key: where it is, or else the one nearby that was not used for the longest time. */
static Known *find(Table *table, uint64_t key)
{
    Known *found = NULL;
    for (unsigned each = 0; each < NEARBY; each++) {
        Known *place = &table->known[(key + each) & (PLACES - 1)];
        if (place->last != 0 && place->key == key)
            return place;
        if (found == NULL || place->last < found->last)
            found = place;
    }
    return found;
}

MQ_EXPORT bool mq_smtp_in_rcptto(MQ_Context *context, MQ_Connection *connection, MQ_Address *recipient)
{
    Table *table = MQ_contextData(context);
    uint64_t *hash = MQ_connectionData(connection);
    const char *email = MQ_email(recipient);
    double time = now();
    if (table == NULL || hash == NULL || email == NULL || MQ_authenticated(connection))
        return false; /* who has logged in is known */
    uint64_t key = mix(*hash, email, strlen(email));
    Known *known = find(table, key);
    if (known->last == 0 || known->key != key || time - known->last > FORGET)
        *known = (Known){.key = key, .first = time};
    known->last = time;
    if (time - known->first < table->delay)
        MQ_reject(connection, 450, "4.7.1 greylisted, come again in a few minutes");
    return false;
}

MQ_EXPORT bool mq_smtp_in_close(MQ_Context *context, MQ_Connection *connection)
{
    (void)context;
    free(MQ_connectionData(connection));
    MQ_setConnectionData(connection, NULL);
    return false;
}
