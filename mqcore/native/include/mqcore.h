/*
 * mqcore.h - native plugins for mqcore.
 *
 * A plugin is a shared object with the functions of the first part below, as many of them as it needs: cc -shared -fPIC
 * -I"$(python -m mqcore include)" -o plugins/10-name.so name.c. It links to nothing for the second part: the functions
 * that mqcore offers are there when it is loaded. Names and meanings follow MailerQ.
 *
 * TRUST. A plugin is part of the process and may do all that the process may. What it crashes, overwrites or blocks is
 * the whole server's. What mqcore does keep from hurting is the wrong use of its own functions: a handle that is stale,
 * made up, of another kind, or given back twice is recognised before anything is read through it. The call is then
 * logged to the plugin's logger, counted in its `refused`, and otherwise ignored: it returns what "ignored" says below.
 * (Of a flood, the first 1,000 that a dispatcher finds in one turn are; the others are only ignored.)
 *
 * HANDLES. Pointers to the types MQ_Context, MQ_Connection, MQ_Message, MQ_Address, MQ_IOWatcher and MQ_Timer are
 * numbers that never point anywhere. They belong to mqcore; never free one or read through it.
 *   MQ_Context     one for each plugin and dispatcher: from mq_context_initialize until mq_context_cleanup returns.
 *   MQ_Connection  new for every call of a hook, also on the same connection. Until the hook returns false, or, when it
 *   MQ_Message     returns true, until control is given back or the step ends otherwise (deadline, cancel, close).
 *   MQ_Address     As its message or the hook that it was given to.
 *   MQ_Timer       from MQ_startTimer until it is stopped or its callback is called.
 *   MQ_IOWatcher   from MQ_ioWatch until MQ_ioUnwatch; or until the callback that is told 0 events is called.
 * Timers and watchers also end with their context. No callback comes after that.
 * A handle is for the plugin that it was given to. Where another plugin uses it, in a hook or a callback of its own, that
 * is a misuse like any other. Only on other threads nobody knows whose code is running: a live connection that is given
 * back there is given back, and its owner, coming later, is told that it had done so already.
 *
 * STRINGS that come from mqcore are UTF-8 and end with a 0. They belong to mqcore and are valid as long as the
 * MQ_Connection of that call of a hook. Strings that a plugin gives are copied. NULL, or a size that no memory has, is
 * ignored; but NULL for an address means that there is none.
 *
 * THREADS. Each dispatcher has one thread, on which all hooks and callbacks of its contexts are called; several
 * dispatchers call the same plugin at the same time. Every function below belongs to the dispatcher's thread, where it
 * is called in a hook, in a callback, in mq_context_initialize or in mq_context_cleanup. On another thread it is
 * ignored. "Any thread" says what other threads may do: give back, and log.
 *
 * SIGNAL HANDLERS may call MQ_continue, MQ_complete and MQ_retry, and nothing else, on whatever thread they run: these take
 * no lock and no memory, and leave errno as it was; nor does what they have to say of a misuse, as long as a dispatcher that
 * has native plugins is open. (Without one no connection can be given back, and the line is logged at once, in Python.)
 *
 * THE GIL, Python's global lock. Callbacks are called without it; hooks are when a native callback gave the message back,
 * so that a chain of native plugins never waits for Python. So neither ever calls Python's API.
 * mq_initialize, mq_cleanup, mq_context_initialize and mq_context_cleanup are called without it, and may block. Each
 * function below says whether it may take the GIL. One that may can wait for Python code: do not call it with a lock
 * held that a hook also takes. All others may have to log a misuse; from other threads they leave that to the
 * dispatcher's, so that they never wait for Python there, as long as a dispatcher is open.
 */

#ifndef MQCORE_H
#define MQCORE_H

#include <stddef.h>

#ifdef __cplusplus
extern "C" {
#else
#include <stdbool.h>
#endif

/* What mq_version() must return. It grows when a plugin has to be compiled anew. Functions may be added without that. */
#define MQ_API_VERSION 1

/* Before every function that a plugin exports, so that it may be compiled with -fvisibility=hidden. */
#define MQ_EXPORT __attribute__((visibility("default")))

#define MQ_READ 1
#define MQ_WRITE 2

/* Priorities of MQ_log(), as syslog has them. */
#define MQ_CRIT 2
#define MQ_ERROR 3
#define MQ_WARN 4
#define MQ_INFO 6
#define MQ_DEBUG 7

typedef struct MQ_Context MQ_Context;       /* the plugin on one dispatcher */
typedef struct MQ_Connection MQ_Connection; /* what is passing through the hook: the connection, and control of it */
typedef struct MQ_Message MQ_Message;       /* the mail that it carries */
typedef struct MQ_Address MQ_Address;       /* an address of the envelope */
typedef struct MQ_IOWatcher MQ_IOWatcher;
typedef struct MQ_Timer MQ_Timer;

/* ---------------------------------------------------------------- What a plugin exports. Only mq_version is required. */

/* First of all; the plugin is refused when it does not return MQ_API_VERSION. Called once, by the loading thread, as is
 * mq_initialize. (The constructors of a shared object run before, when it is opened.) */
MQ_EXPORT int mq_version(void);

/* After that, once. */
MQ_EXPORT void mq_initialize(void);

/* Once, by any thread, after the last mq_context_cleanup. Threads of the plugin's own may still be in its code, but must
 * not rely on any handle. For a plugin that could have such threads, signal handlers, or handles of its own on the loop,
 * which is judged by the functions that it is linked to, the code stays in memory for good. That of any other is taken
 * out of it (dlclose) some time after this. */
MQ_EXPORT void mq_cleanup(void);

/* On each dispatcher, before the first message and after the last. In mq_context_cleanup the handles of that context
 * are still valid; when it returns, all timers and watchers are stopped. */
MQ_EXPORT void mq_context_initialize(MQ_Context *context);
MQ_EXPORT void mq_context_cleanup(MQ_Context *context);

/* Hooks. false: go on, with the next plugin. true: the plugin has control, and MUST give it back once, with MQ_continue,
 * MQ_complete, MQ_retry or MQ_fail. Until then the message waits; a hook must not block.
 *
 * Control may be given back before the hook returns. Then it returns true; or false, if what it said was MQ_continue. */
MQ_EXPORT bool mq_smtp_in_connect(MQ_Context *context, MQ_Connection *connection);
MQ_EXPORT bool mq_smtp_in_secure(MQ_Context *context, MQ_Connection *connection);
MQ_EXPORT bool mq_smtp_in_authenticate(MQ_Context *context, MQ_Connection *connection, const char *login, size_t loginsize,
                                       const char *passwd, size_t passwdsize);
MQ_EXPORT bool mq_smtp_in_mailfrom(MQ_Context *context, MQ_Connection *connection, MQ_Address *envelope);
MQ_EXPORT bool mq_smtp_in_rcptto(MQ_Context *context, MQ_Connection *connection, MQ_Address *recipient);
MQ_EXPORT bool mq_smtp_in_data(MQ_Context *context, MQ_Connection *connection, const char *mime, size_t size);
MQ_EXPORT bool mq_smtp_in_message(MQ_Context *context, MQ_Connection *connection, MQ_Message *message);
MQ_EXPORT bool mq_smtp_in_close(MQ_Context *context, MQ_Connection *connection);
MQ_EXPORT bool mq_smtp_out_data(MQ_Context *context, MQ_Connection *connection, MQ_Message *message);
MQ_EXPORT bool mq_smtp_out_sent(MQ_Context *context, MQ_Connection *connection, MQ_Message *message);
/* Not MailerQ's: a plugin has rejected this. What it returns changes nothing. */
MQ_EXPORT bool mq_smtp_in_rejected(MQ_Context *context, MQ_Connection *connection, MQ_Message *message);

/* A hook that a server declared itself, and that has no arguments of its own, is called like mq_smtp_in_message. */

/* ------------------------------------------------------------------------------------------------ What mqcore offers. */

/* Give control back: to the next plugin; to nobody, the other plugins are skipped; to the first plugin again (more than
 * `max_retries` of these fail the step). Queued: no hook is called before the function returns. The connection's handle
 * and all that came with it are invalid from now on.
 * Any thread. Never takes the GIL. Twice, late, or not in control: ignored. */
void MQ_continue(MQ_Connection *connection);
void MQ_complete(MQ_Connection *connection);
void MQ_retry(MQ_Connection *connection);

/* Give control back: the step fails, with an error that has this text. As the three above, except that a signal handler may
 * not call it, as it takes memory. Not MailerQ's. */
void MQ_fail(MQ_Connection *connection, const char *text);

/* A pointer of the plugin's own for each context, NULL at first. mqcore never looks at it; free it in
 * mq_context_cleanup. Never takes the GIL. Ignored: NULL. */
void *MQ_contextData(MQ_Context *context);
void MQ_setContextData(MQ_Context *context, void *data);

/* What the plugin's configuration has for `key`, or NULL: text as it is, all else as JSON ("30", "true", "[1, 2]"). Valid as
 * long as the context. May take the GIL. Ignored: NULL. Not MailerQ's. */
const char *MQ_config(MQ_Context *context, const char *key);

/* Call `callback` once, after so many seconds, never early; with 0 in the next turn of the loop. A number of seconds that is
 * negative, not finite or above 10^9 is ignored. Never takes the GIL. Ignored: NULL. `data` is the plugin's. */
MQ_Timer *MQ_startTimer(MQ_Context *context, float seconds, void (*callback)(void *data), void *data);

/* Have it called that many seconds from now instead. For a timer whose callback was called: ignored. No GIL. */
void MQ_resetTimer(MQ_Timer *timer, float seconds);

/* It will not be called. For a timer whose callback was called, or that was stopped: ignored. No GIL. */
void MQ_stopTimer(MQ_Timer *timer);

/* Call `callback` whenever the file descriptor is ready for what `events` says: MQ_READ, MQ_WRITE or both. `events` in
 * the callback: which of these. The descriptor becomes non-blocking; several watchers may share one. It stays the
 * plugin's: stop the watcher, then close it. When it was closed under the watcher, that is stopped, and the callback is
 * called once more with 0 events.
 * Takes the GIL only to log that a descriptor cannot be watched: then NULL, and errno says why.
 * Ignored: NULL. */
MQ_IOWatcher *MQ_ioWatch(MQ_Context *context, int fd, int events,
                         void (*callback)(MQ_IOWatcher *watcher, int fd, int events, void *data), void *data);

/* Also in its callback. One that is stopped: ignored. No GIL. */
void MQ_ioUnwatch(MQ_IOWatcher *watcher);

/* The libuv loop of the dispatcher, which is its owner's, and is there as long as the context; and a function of the libuv
 * that made the loop, by name, such as "uv_poll_start": there may be several in the process, and only that one may touch
 * the loop. NULL where there is none of that name.
 * Close what you start on it in mq_context_cleanup, wait for its close callbacks where they need the plugin's data,
 * and leave the `data` of handles NULL on a uvloop loop. MQ_uvSymbol may take the GIL. Ignored: NULL. */
struct uv_loop_s *MQ_uv(MQ_Context *context);
void *MQ_uvSymbol(MQ_Context *context, const char *name);

/* The functions from here to MQ_setJson may take the GIL, as they reach what Python has. They are for a plugin that has
 * control: its hook is being called, or returned true. */

/* A pointer of the plugin's own for each connection, NULL at first; free it in mq_smtp_in_close. Where no connection is
 * known, for each message. */
void *MQ_connectionData(MQ_Connection *connection);
void MQ_setConnectionData(MQ_Connection *connection, void *data);

/* The socket, to look at (as with getpeername()) and nothing else. Ignored, or no connection: -1. */
int MQ_fileDescriptor(MQ_Connection *connection);

/* Send bytes as they are. How many were taken: all, or 0 when there is no connection, or ignored. It is ignored while the other
 * side waits for a reply, and would take the bytes for that: in an SMTP server that is in every hook before the reply. */
size_t MQ_send(MQ_Connection *connection, const void *buffer, size_t size);

/* Whether the connection is encrypted, and whether its client has logged in. Ignored, or no connection: false. */
bool MQ_secure(MQ_Connection *connection);
bool MQ_authenticated(MQ_Connection *connection);
void MQ_setAuthenticated(MQ_Connection *connection, bool authenticated);

/* What the client calls itself (NULL until it has said so), and its address (empty on a Unix socket). Ignored, or no
 * connection: NULL. Not MailerQ's. */
const char *MQ_helo(MQ_Connection *connection);
const char *MQ_peer(MQ_Connection *connection);

/* Refuse what the hook is about, with an SMTP reply: a code from 400 to 599 and a text in one line. This gives nothing back: the
 * plugin does that as ever, or its hook returns false; but then no other plugin is called, and the first rejection stands.
 * Where it cannot be refused so (a message of no mail server, another code), the step fails when the plugin is done with it.
 * Not MailerQ's. */
void MQ_reject(MQ_Connection *connection, int code, const char *text);

/* The sender and the recipient of a message; NULL where there is none, or ignored. Setters change the JSON of an incoming
 * message, and of an outgoing one only what is sent. An address with a CR or LF in it is ignored. */
MQ_Address *MQ_envelope(MQ_Message *message);
void MQ_setEnvelope(MQ_Message *message, const char *envelope, size_t size);
MQ_Address *MQ_recipient(MQ_Message *message);
void MQ_setRecipient(MQ_Message *message, const char *recipient, size_t size);

/* The address as text; NULL for that of a bounce. */
const char *MQ_email(MQ_Address *address);

/* The mail itself: so many bytes (0: ignored, or there is none). It may have 0 bytes in it, where a string seems to end: whoever
 * gives it back by MQ_setMime takes its size from MQ_mimeSize, which is not MailerQ's. */
const char *MQ_mime(MQ_Message *message);
size_t MQ_mimeSize(MQ_Message *message);
void MQ_setMime(MQ_Message *message, const char *mime, size_t size);

/* The first field of that name in the mail's header, unfolded (NULL: there is none, or ignored); and a field put above all others,
 * which leaves the rest of the mail as it is. What is no name or has a line end in it is logged and ignored. Not MailerQ's. */
const char *MQ_header(MQ_Message *message, const char *name);
void MQ_addHeader(MQ_Message *message, const char *name, const char *value);

/* Whether the message is to be delivered here. */
bool MQ_local(MQ_Message *message);
void MQ_setLocal(MQ_Message *message, bool local);

/* All that is known about the message, as the text of a JSON object. What is no such text is ignored. */
const char *MQ_json(MQ_Message *message);
void MQ_setJson(MQ_Message *message, const char *json, size_t size);

/* Log a line to `mqcore.plugins.NAME`. Another priority than those above: as MQ_INFO, and said so. Any thread. May take
 * the GIL on the dispatcher's thread, and when no dispatcher is open; else the line is left to the dispatcher. */
void MQ_log(int priority, const char *message);

#ifdef __cplusplus
}
#endif

#endif
