// SPDX-License-Identifier: Apache-2.0
/*
 * zero_copy WAY TEXT: send a statement from pages, without copying it.
 *
 * sendfile, splice, vmsplice   plainly
 * rewrite                      sendfile(2) of a harmless statement while the server is busy; the pages, which are
 *                              still in the server's queue, are changed before it reads them
 */
#include "pg.h"
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/sendfile.h>
#include <sys/uio.h>

int main(int argc, char **argv)
{
	const char *way = argv[1];
	char frame[4096], busy[64];
	size_t len = pg_query(frame, argv[2]);
	int fd = pg_open(), file = MUST(memfd_create("frame", 0)), pipes[2];
	char *shared;
	off_t at = 0;

	(void)argc;
	MUST(ftruncate(file, 4096));
	shared = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
	memcpy(shared, frame, len);
	MUST(pipe(pipes));
	if (!strcmp(way, "sendfile")) {
		MUST(sendfile(fd, file, &at, len));
	} else if (!strcmp(way, "splice")) {
		MUST(splice(file, &at, pipes[1], NULL, len, 0));
		MUST(splice(pipes[0], NULL, fd, NULL, len, 0));
	} else if (!strcmp(way, "vmsplice")) {
		struct iovec v = { shared, len };

		MUST(vmsplice(pipes[1], &v, 1, 0));
		MUST(splice(pipes[0], NULL, fd, NULL, len, 0));
	} else {
		pg_decoy(shared, len);
		MUST(write(fd, busy, pg_query(busy, "SELECT pg_sleep(0.6)")));
		usleep(100000);
		MUST(sendfile(fd, file, &at, len));
		usleep(100000);
		memcpy(shared, frame, len);
		pg_ready(fd);
	}
	pg_ready(fd);
	pg_close(fd);
	return 0;
}
