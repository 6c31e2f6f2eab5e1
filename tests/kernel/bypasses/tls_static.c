// SPDX-License-Identifier: Apache-2.0
/*
 * tls_static TEXT: do what every client does. Linked with OpenSSL's archives and
 * without symbols, so that nobody knows which function is SSL_write.
 */
#include "ssl.h"

int main(int argc, char **argv)
{
	struct ssl *ssl = tls_open();

	(void)argc;
	tls_begin(ssl);
	tls_ask(ssl, argv[1]);
	tls_end(ssl);
	return 0;
}
