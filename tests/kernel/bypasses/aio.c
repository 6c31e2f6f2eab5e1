// SPDX-License-Identifier: Apache-2.0
/* aio TEXT: send a statement by io_submit(2). */
#include "pg.h"
#include <linux/aio_abi.h>
#include <sys/syscall.h>

int main(int argc, char **argv)
{
	char frame[4096];
	size_t len = pg_query(frame, argv[1]);
	int fd = pg_open();
	aio_context_t context = 0;
	struct iocb one = { .aio_lio_opcode = IOCB_CMD_PWRITE, .aio_fildes = fd,
			    .aio_buf = (uintptr_t)frame, .aio_nbytes = len };
	struct iocb *list[1] = { &one };

	(void)argc;
	MUST(syscall(SYS_io_setup, 1, &context));
	MUST(syscall(SYS_io_submit, context, 1, list));
	pg_ready(fd);
	pg_close(fd);
	return 0;
}
