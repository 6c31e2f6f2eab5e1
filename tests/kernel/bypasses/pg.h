/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What every attacker shares: PostgreSQL's protocol in the few messages that an
 * attack needs. PGHOST (an address, or the folder of a Unix socket), PGPORT,
 * PGUSER and PGDATABASE say where.
 */
#ifndef BYPASSES_PG_H
#define BYPASSES_PG_H

#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <arpa/inet.h>
#include <errno.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#define MUST(call)                                                                 \
	({                                                                         \
		long must_ = (long)(call);                                         \
		if (must_ == -1) {                                                 \
			fprintf(stderr, "%s: %s\n", #call, strerror(errno));       \
			exit(2);                                                   \
		}                                                                  \
		must_;                                                             \
	})

static inline socklen_t pg_address(struct sockaddr_storage *a)
{
	const char *host = getenv("PGHOST");
	struct sockaddr_un *un = (struct sockaddr_un *)a;
	struct sockaddr_in *in = (struct sockaddr_in *)a;

	memset(a, 0, sizeof(*a));
	if (host[0] == '/') {
		un->sun_family = AF_UNIX;
		snprintf(un->sun_path, sizeof(un->sun_path), "%s/.s.PGSQL.%s", host, getenv("PGPORT"));
		return sizeof(*un);
	}
	in->sin_family = AF_INET;
	in->sin_port = htons(atoi(getenv("PGPORT")));
	inet_pton(AF_INET, host, &in->sin_addr);
	return sizeof(*in);
}

static inline int pg_socket(void)
{
	struct sockaddr_storage a;

	pg_address(&a);
	return MUST(socket(a.ss_family, SOCK_STREAM, 0));
}

static inline void put32(char *at, uint32_t value)
{
	value = htonl(value);
	memcpy(at, &value, 4);
}

/* The startup packet into b; its length. */
static inline size_t pg_hello(char *b)
{
	size_t n = 8;

	put32(b + 4, 196608);
	n += sprintf(b + n, "user") + 1;
	n += sprintf(b + n, "%s", getenv("PGUSER")) + 1;
	n += sprintf(b + n, "database") + 1;
	n += sprintf(b + n, "%s", getenv("PGDATABASE")) + 1;
	b[n++] = 0;
	put32(b, n);
	return n;
}

/* A Query message into b; its length. */
static inline size_t pg_query(char *b, const char *text)
{
	size_t n = strlen(text) + 1;

	b[0] = 'Q';
	put32(b + 1, n + 4);
	memcpy(b + 5, text, n);
	return n + 5;
}

/* Read until the server has said so many times that it is ready for a query. */
static inline void pg_answers(int fd, int count)
{
	static const char ready[5] = "Z\0\0\0\5";
	unsigned matched = 0;

	while (count) {
		char c;

		if (!MUST(read(fd, &c, 1))) {
			fprintf(stderr, "the server closed the connection\n");
			exit(3);
		}
		matched = c == ready[matched] ? matched + 1 : c == ready[0];
		if (matched == sizeof(ready)) {
			matched = 0;
			count--;
			MUST(read(fd, &c, 1)); /* the state of the transaction */
		}
	}
}

static inline void pg_ready(int fd)
{
	pg_answers(fd, 1);
}

/* A connection that is ready for queries. */
static inline int pg_open(void)
{
	struct sockaddr_storage a;
	socklen_t len = pg_address(&a);
	int fd = pg_socket();
	char b[1024];

	MUST(connect(fd, (struct sockaddr *)&a, len));
	MUST(write(fd, b, pg_hello(b)));
	pg_ready(fd);
	return fd;
}

static inline void pg_close(int fd)
{
	MUST(write(fd, "X\0\0\0\4", 5));
	close(fd);
}

/* Overwrite a Query message with one of the same length that looks harmless. */
static inline void pg_decoy(char *b, size_t len)
{
	char *text = b + 5;
	size_t n = len - 6;

	memcpy(text, "SELECT '", 8);
	memset(text + 8, 'x', n - 9);
	text[n - 1] = '\'';
}

#endif
