/* A milter with Sendmail's libmilter that sees the whole mail and puts one field on top of it.
 *
 *     milter_floor PORT [noreply]
 */
#include <libmilter/mfapi.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static int noreply;

struct mail {
	size_t size, room;
	char *text;
};

static void keep(SMFICTX *ctx, const void *data, size_t size)
{
	struct mail *mail = smfi_getpriv(ctx);
	if (mail == NULL)
		return;
	if (mail->size + size > mail->room) {
		mail->room = 2 * (mail->size + size);
		mail->text = realloc(mail->text, mail->room);
		if (mail->text == NULL)
			abort();
	}
	memcpy(mail->text + mail->size, data, size);
	mail->size += size;
}

static sfsistat answer(void) { return noreply ? SMFIS_NOREPLY : SMFIS_CONTINUE; }

static sfsistat on_connect(SMFICTX *ctx, char *name, _SOCK_ADDR *address)
{
	(void)name, (void)address;
	smfi_setpriv(ctx, calloc(1, sizeof(struct mail)));
	return answer();
}

static sfsistat on_helo(SMFICTX *ctx, char *name) { return (void)ctx, (void)name, answer(); }

static sfsistat on_sender(SMFICTX *ctx, char **arguments)
{
	struct mail *mail = smfi_getpriv(ctx);
	(void)arguments;
	if (mail != NULL)
		mail->size = 0;
	return answer();
}

static sfsistat on_recipient(SMFICTX *ctx, char **arguments)
{
	keep(ctx, arguments[0], strlen(arguments[0]));
	return answer();
}

static sfsistat on_data(SMFICTX *ctx) { return (void)ctx, answer(); }

static sfsistat on_header(SMFICTX *ctx, char *name, char *value)
{
	keep(ctx, name, strlen(name));
	keep(ctx, value, strlen(value));
	return answer();
}

static sfsistat on_body(SMFICTX *ctx, unsigned char *chunk, size_t size)
{
	keep(ctx, chunk, size);
	return answer();
}

static sfsistat on_end(SMFICTX *ctx)
{
	smfi_insheader(ctx, 0, "X-Filtered", "yes");
	return SMFIS_CONTINUE;
}

static sfsistat on_close(SMFICTX *ctx)
{
	struct mail *mail = smfi_getpriv(ctx);
	if (mail != NULL)
		free(mail->text);
	free(mail);
	smfi_setpriv(ctx, NULL);
	return SMFIS_CONTINUE;
}

static sfsistat negotiate(SMFICTX *ctx, unsigned long actions, unsigned long steps, unsigned long f2, unsigned long f3,
                          unsigned long *p_actions, unsigned long *p_steps, unsigned long *p_f2, unsigned long *p_f3)
{
	(void)ctx, (void)actions, (void)f2, (void)f3;
	*p_actions = SMFIF_ADDHDRS;
	*p_steps = noreply ? steps & (SMFIP_NR_CONN | SMFIP_NR_HELO | SMFIP_NR_MAIL | SMFIP_NR_RCPT | SMFIP_NR_DATA | SMFIP_NR_UNKN |
	                              SMFIP_NR_HDR | SMFIP_NR_EOH | SMFIP_NR_BODY | SMFIP_NOUNKNOWN | SMFIP_HDR_LEADSPC)
	                   : steps & (SMFIP_NOUNKNOWN | SMFIP_HDR_LEADSPC);
	*p_f2 = *p_f3 = 0;
	return SMFIS_CONTINUE;
}

static struct smfiDesc description = {
	.xxfi_name = "bench", .xxfi_version = SMFI_VERSION, .xxfi_flags = SMFIF_ADDHDRS, .xxfi_connect = on_connect,
	.xxfi_helo = on_helo, .xxfi_envfrom = on_sender, .xxfi_envrcpt = on_recipient, .xxfi_header = on_header,
	.xxfi_eoh = on_data, .xxfi_body = on_body, .xxfi_eom = on_end, .xxfi_close = on_close, .xxfi_data = on_data,
	.xxfi_negotiate = negotiate,
};

int main(int count, char **arguments)
{
	char where[64];
	if (count < 2)
		return 2;
	noreply = count > 2;
	snprintf(where, sizeof where, "inet:%s@127.0.0.1", arguments[1]);
	if (smfi_setconn(where) == MI_FAILURE || smfi_register(description) == MI_FAILURE)
		return 1;
	return smfi_main() == MI_SUCCESS ? 0 : 1;
}
