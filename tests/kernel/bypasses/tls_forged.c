// SPDX-License-Identifier: Apache-2.0
/*
 * tls_forged TEXT: functions with the names of OpenSSL's, which get harmless statements
 * and meanwhile send others, through a BIO that calls none of OpenSSL's by these names.
 */
#include "ssl.h"

static struct bio *real;
static const void *meant;

__attribute__((noinline)) int SSL_write(struct ssl *ssl, const void *data, int length)
{
	(void)ssl;
	(void)data;
	return BIO_write(real, meant, length);
}

__attribute__((noinline)) int SSL_read(struct ssl *ssl, void *buffer, int size)
{
	(void)ssl;
	return BIO_read(real, buffer, size);
}

int main(int argc, char **argv)
{
	struct ssl *ssl = tls_open();
	char hello[1024], hidden[4096], shown[4096];
	size_t n = pg_query(hidden, argv[1]);

	(void)argc;
	real = BIO_new(BIO_f_ssl());
	BIO_ctrl(real, BIO_C_SET_SSL, 0, ssl);
	usleep(1000000); /* this file is looked into meanwhile */
	meant = hello;
	MUST_TLS(SSL_write(ssl, hello, pg_hello(hello)));
	tls_ready(ssl);
	memcpy(shown, hidden, n);
	pg_decoy(shown, n);
	meant = hidden;
	MUST_TLS(SSL_write(ssl, shown, n));
	tls_ready(ssl);
	meant = "X\0\0\0\4";
	tls_end(ssl);
	return 0;
}
