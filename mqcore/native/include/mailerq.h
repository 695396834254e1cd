/* For plugins that were written for MailerQ. */
#include "mqcore.h"
