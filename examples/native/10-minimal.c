/* The least that a native plugin can be, and the functions of its life.
 *
 *     cc -shared -fPIC -I"$(python -m mqcore include)" -o plugins/10-minimal.so 10-minimal.c
 */
#include <mqcore.h>

/* Required: the version of the API that the plugin was compiled for. */
MQ_EXPORT int mq_version(void)
{
    return MQ_API_VERSION;
}

/* Once, when the plugin is loaded. Optional, like all that follows. */
MQ_EXPORT void mq_initialize(void)
{
    MQ_log(MQ_INFO, "loaded");
}

/* Once, at the end. */
MQ_EXPORT void mq_cleanup(void)
{
    MQ_log(MQ_INFO, "unloaded");
}

/* For every message. */
MQ_EXPORT bool mq_smtp_in_message(MQ_Context *context, MQ_Connection *connection, MQ_Message *message)
{
    (void)context, (void)connection;
    if (MQ_mime(message) != NULL)
        MQ_setLocal(message, true);
    return false; /* go on, with the next plugin */
}
