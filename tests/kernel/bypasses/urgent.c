// SPDX-License-Identifier: Apache-2.0
/*
 * urgent TEXT: out-of-band bytes that the server never reads, as the header of a password message that seems to hold
 * the statement. Who reads the stream as it was sent takes the statement for a password.
 */
#include "pg.h"

int main(int argc, char **argv)
{
	char frame[4096], header[5] = "p";
	size_t len = pg_query(frame, argv[1]);
	int fd = pg_open(), i;

	(void)argc;
	put32(header + 1, 4 + len);
	for (i = 0; i < 5; i++) {
		MUST(send(fd, header + i, 1, MSG_OOB));
		usleep(30000); /* a second one in a row would make the first an ordinary byte */
	}
	MUST(write(fd, frame, len));
	pg_ready(fd);
	pg_close(fd);
	return 0;
}
