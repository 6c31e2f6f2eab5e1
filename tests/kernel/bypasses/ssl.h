/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What of OpenSSL an attack needs, so that its headers need not be there, and how a
 * connection to PostgreSQL comes under TLS.
 */
#ifndef BYPASSES_SSL_H
#define BYPASSES_SSL_H

#include "pg.h"

#define SSL_REQUEST   80877103
#define BIO_C_SET_SSL 109

struct ssl;
struct ssl_context;
struct bio;

const void *TLS_client_method(void);
struct ssl_context *SSL_CTX_new(const void *method);
struct ssl *SSL_new(struct ssl_context *context);
int SSL_set_fd(struct ssl *ssl, int fd);
int SSL_connect(struct ssl *ssl);
int SSL_write(struct ssl *ssl, const void *data, int length);
int SSL_read(struct ssl *ssl, void *buffer, int size);
int SSL_shutdown(struct ssl *ssl);
const void *BIO_f_ssl(void);
struct bio *BIO_new(const void *method);
long BIO_ctrl(struct bio *bio, int what, long number, void *pointer);
int BIO_write(struct bio *bio, const void *data, int length);
int BIO_read(struct bio *bio, void *buffer, int size);

/* Like MUST, of a function of OpenSSL. */
#define MUST_TLS(call)                                                             \
	({                                                                         \
		int must_ = (call);                                                \
		if (must_ <= 0) {                                                  \
			fprintf(stderr, "%s: %d\n", #call, must_);                 \
			exit(2);                                                   \
		}                                                                  \
		must_;                                                             \
	})

/* A connection under TLS that PostgreSQL's protocol has not begun on. */
static inline struct ssl *tls_open(void)
{
	struct ssl *ssl = SSL_new(SSL_CTX_new(TLS_client_method()));
	struct sockaddr_storage a;
	socklen_t len = pg_address(&a);
	int fd = pg_socket();
	char request[8], answer;

	put32(request, sizeof(request));
	put32(request + 4, SSL_REQUEST);
	MUST(connect(fd, (struct sockaddr *)&a, len));
	MUST(write(fd, request, sizeof(request)));
	if (MUST(read(fd, &answer, 1)) != 1 || answer != 'S') {
		fprintf(stderr, "the server does not speak TLS\n");
		exit(3);
	}
	SSL_set_fd(ssl, fd);
	MUST_TLS(SSL_connect(ssl));
	return ssl;
}

/* Read until the server is ready for a query. */
static inline void tls_ready(struct ssl *ssl)
{
	char b[65536];
	int n;

	do {
		n = MUST_TLS(SSL_read(ssl, b, sizeof(b)));
	} while (n < 6 || memcmp(b + n - 6, "Z\0\0\0\5", 5));
}

static inline void tls_begin(struct ssl *ssl)
{
	char b[1024];

	MUST_TLS(SSL_write(ssl, b, pg_hello(b)));
	tls_ready(ssl);
}

static inline void tls_ask(struct ssl *ssl, const char *text)
{
	char b[4096];

	MUST_TLS(SSL_write(ssl, b, pg_query(b, text)));
	tls_ready(ssl);
}

static inline void tls_end(struct ssl *ssl)
{
	MUST_TLS(SSL_write(ssl, "X\0\0\0\4", 5));
	SSL_shutdown(ssl);
}

#endif
