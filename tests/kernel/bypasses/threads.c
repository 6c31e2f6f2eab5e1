// SPDX-License-Identifier: Apache-2.0
/*
 * threads query TEXT | threads exec PROGRAM ARGUMENT...: the first thread exits at once, another one acts.
 */
#include "pg.h"
#include <pthread.h>

static char **arguments;

static void *act(void *leader)
{
	pthread_join(*(pthread_t *)leader, NULL);
	usleep(50000); /* the leader is a zombie now */
	if (!strcmp(arguments[1], "exec")) {
		MUST(execv(arguments[2], arguments + 2));
	} else {
		char frame[4096];
		int fd = pg_open();

		MUST(write(fd, frame, pg_query(frame, arguments[2])));
		pg_ready(fd);
		pg_close(fd);
	}
	exit(0);
}

int main(int argc, char **argv)
{
	static pthread_t leader;
	pthread_t thread;

	(void)argc;
	arguments = argv;
	leader = pthread_self();
	MUST(pthread_create(&thread, NULL, act, &leader));
	pthread_exit(NULL);
}
