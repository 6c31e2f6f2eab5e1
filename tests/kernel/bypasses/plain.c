// SPDX-License-Identifier: Apache-2.0
/* plain TEXT: a statement sent plainly; built dynamically, statically and (PRELOAD) as a library to be preloaded. */
#include "pg.h"

static void act(const char *text)
{
	char frame[4096];
	int fd = pg_open();

	MUST(write(fd, frame, pg_query(frame, text)));
	pg_ready(fd);
	pg_close(fd);
}

#ifdef PRELOAD
__attribute__((constructor)) static void preloaded(void)
{
	act(getenv("PRELOADED_TEXT"));
}
#else
int main(int argc, char **argv)
{
	(void)argc;
	act(argv[1]);
	return 0;
}
#endif
