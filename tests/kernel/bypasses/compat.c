// SPDX-License-Identifier: Apache-2.0
/*
 * compat query TEXT | compat exec PROGRAM ARGUMENT: 32-bit system calls from a 64-bit program.
 */
#include "pg.h"
#include <sys/mman.h>

#define NR32_EXECVE 11
#define NR32_WRITE 4
#define NR32_SOCKET 359
#define NR32_CONNECT 362

static long call32(long nr, long a, long b, long c)
{
	long result;

	__asm__ volatile("int $0x80"
			 : "=a"(result)
			 : "a"(nr), "b"(a), "c"(b), "d"(c)
			 : "memory", "r8", "r9", "r10", "r11");
	if ((int)result < 0) {
		errno = -(int)result;
		return -1;
	}
	return (int)result;
}

int main(int argc, char **argv)
{
	char *low = mmap(NULL, 65536, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_32BIT, -1, 0);
	struct sockaddr_storage *address = (struct sockaddr_storage *)low;
	uint32_t *words = (uint32_t *)(low + 8192);
	char *b = low + 4096;
	socklen_t len;
	int fd;

	if (!strcmp(argv[1], "exec")) {
		int i;

		for (i = 0; i + 2 < argc; i++) {
			strcpy(b, argv[i + 2]);
			words[i] = (uint32_t)(uintptr_t)b;
			b += strlen(b) + 1;
		}
		words[i] = 0;
		call32(NR32_EXECVE, words[0], (long)words, 0);
		printf("%s\n", strerror(errno)); /* the program is not there */
		return 0;
	}
	len = pg_address(address);
	fd = MUST(call32(NR32_SOCKET, address->ss_family, SOCK_STREAM, 0));
	MUST(call32(NR32_CONNECT, fd, (long)address, len));
	MUST(call32(NR32_WRITE, fd, (long)b, pg_hello(b)));
	pg_ready(fd);
	MUST(call32(NR32_WRITE, fd, (long)b, pg_query(b, argv[2])));
	pg_ready(fd);
	pg_close(fd);
	return 0;
}
