// SPDX-License-Identifier: Apache-2.0
/*
 * rewrite TEXT: send a statement that keeps the server busy, and behind it, in the same write(2), more than the
 * socket holds. While the call waits for room a second thread replaces the statement, which the server has read.
 */
#include "pg.h"
#include <pthread.h>

#define FILLER (4 << 20)

static char *buffer;
static size_t first;

static void *rewrite(void *unused)
{
	usleep(250000);
	pg_decoy(buffer, first);
	return unused;
}

int main(int argc, char **argv)
{
	static char text[4096], filler[FILLER];
	pthread_t thread;
	size_t total;
	int fd = pg_open();

	(void)argc;
	buffer = malloc(FILLER + 8192);
	snprintf(text, sizeof(text), "%s", argv[1]);
	first = pg_query(buffer, text);
	memset(filler, ' ', sizeof(filler) - 1);
	memcpy(filler, "SELECT 1", 8);
	total = first + pg_query(buffer + first, filler);
	MUST(pthread_create(&thread, NULL, rewrite, NULL));
	if (MUST(write(fd, buffer, total)) != (long)total)
		return 4;
	pthread_join(thread, NULL);
	pg_ready(fd);
	usleep(50000);
	pg_close(fd);
	return 0;
}
