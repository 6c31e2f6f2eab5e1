// SPDX-License-Identifier: Apache-2.0
/*
 * mmsg WAY TEXT: one sendmmsg(2) call that holds a statement in pieces.
 *
 * hundred  100 messages
 * empty    an empty message, a harmless statement, and the one that matters: who does not count the empty message
 *          reads each of the others in the place of the one before it
 */
#include "pg.h"
#include <sys/uio.h>

#define MESSAGES 100

int main(int argc, char **argv)
{
	static struct mmsghdr messages[MESSAGES + 2];
	static struct iovec v[MESSAGES + 2];
	static char frame[4096], decoy[4096];
	size_t len = pg_query(frame, argv[2]), done = 0;
	int fd = pg_open(), i, count = MESSAGES;

	(void)argc;
	if (!strcmp(argv[1], "hundred")) {
		for (i = 0; i < MESSAGES; i++) {
			size_t n = i == MESSAGES - 1 ? len - done : len / MESSAGES;

			v[i] = (struct iovec){ frame + done, n };
			done += n;
		}
	} else {
		memcpy(decoy, frame, len);
		pg_decoy(decoy, len);
		v[0] = (struct iovec){ decoy, 0 };
		v[1] = (struct iovec){ decoy, len };
		v[2] = (struct iovec){ frame, len };
		count = 3;
	}
	for (i = 0; i < count; i++)
		messages[i].msg_hdr = (struct msghdr){ .msg_iov = &v[i], .msg_iovlen = 1 };
	if (MUST(sendmmsg(fd, messages, count, 0)) != count)
		return 4;
	pg_answers(fd, count == 3 ? 2 : 1);
	pg_close(fd);
	return 0;
}
