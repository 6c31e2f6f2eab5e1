/* SPDX-License-Identifier: Apache-2.0 */
/*
 * pingpong memory|loopback SECONDS CERTIFICATE KEY: the two ends of a TLS connection hand
 * 64 bytes to each other and back, within one thread or over TCP between two processes.
 * Prints the round trips per second, and whether there is a breakpoint at SSL_read.
 */
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define MESSAGE	   64
#define BETWEEN	   64 /* round trips from one look at the clock to the next */
#define BREAKPOINT 0xcc
#define PEM	   1 /* SSL_FILETYPE_PEM */

/* As in openssl/ssl.h, which needs a package of its own. */
typedef struct ssl_ctx_st SSL_CTX;
typedef struct ssl_st SSL;
typedef struct bio_st BIO;

const void *TLS_method(void);
SSL_CTX *SSL_CTX_new(const void *method);
int SSL_CTX_use_certificate_file(SSL_CTX *context, const char *file, int type);
int SSL_CTX_use_PrivateKey_file(SSL_CTX *context, const char *file, int type);
SSL *SSL_new(SSL_CTX *context);
int SSL_set_fd(SSL *ssl, int fd);
void SSL_set_bio(SSL *ssl, BIO *from, BIO *to);
void SSL_set_connect_state(SSL *ssl);
void SSL_set_accept_state(SSL *ssl);
int SSL_do_handshake(SSL *ssl);
int SSL_read(SSL *ssl, void *buffer, int size);
int SSL_write(SSL *ssl, const void *buffer, int size);
int BIO_new_bio_pair(BIO **one, size_t one_size, BIO **other, size_t other_size);

static double now(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec + t.tv_nsec / 1e9;
}

static void check(int ok, const char *what)
{
	if (ok)
		return;
	fprintf(stderr, "%s failed\n", what);
	_exit(1);
}

static void hand_over(SSL *from, SSL *to)
{
	static char message[MESSAGE];

	if (from)
		check(SSL_write(from, message, MESSAGE) == MESSAGE, "SSL_write");
	if (to)
		check(SSL_read(to, message, MESSAGE) == MESSAGE, "SSL_read");
}

/* Both ends are here, in memory. */
static void connect_in_memory(SSL *client, SSL *server)
{
	BIO *one, *other;
	int done = 0;

	check(BIO_new_bio_pair(&one, 0, &other, 0), "BIO_new_bio_pair");
	SSL_set_bio(client, one, one);
	SSL_set_bio(server, other, other);
	for (int i = 0; i < 10 && !done; i++) {
		done = SSL_do_handshake(client) == 1;
		done &= SSL_do_handshake(server) == 1;
	}
	check(done, "handshake");
}

/* The server is a child, which ends with the connection. */
static void connect_over_loopback(SSL *client, SSL *server)
{
	struct sockaddr_in address = { .sin_family = AF_INET };
	socklen_t length = sizeof(address);
	int listener = socket(AF_INET, SOCK_STREAM, 0), fd = socket(AF_INET, SOCK_STREAM, 0);
	int one = 1;
	char message[MESSAGE];

	address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
	check(bind(listener, (struct sockaddr *)&address, sizeof(address)) == 0, "bind");
	check(listen(listener, 1) == 0, "listen");
	check(getsockname(listener, (struct sockaddr *)&address, &length) == 0, "getsockname");
	if (fork() == 0) {
		close(fd);
		fd = accept(listener, NULL, NULL);
		setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one));
		SSL_set_fd(server, fd);
		check(SSL_do_handshake(server) == 1, "the server's handshake");
		while (SSL_read(server, message, MESSAGE) == MESSAGE)
			hand_over(server, NULL);
		_exit(0);
	}
	check(connect(fd, (struct sockaddr *)&address, sizeof(address)) == 0, "connect");
	setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one));
	SSL_set_fd(client, fd);
	check(SSL_do_handshake(client) == 1, "the client's handshake");
}

static void round_trip(SSL *client, SSL *server)
{
	hand_over(client, server);
	hand_over(server, client);
}

/* Without a server here the child answers. */
static double round_trips_per_second(SSL *client, SSL *server, double seconds)
{
	double began = now();
	long done = 0;

	do {
		for (int i = 0; i < BETWEEN; i++)
			round_trip(client, server);
		done += BETWEEN;
	} while (now() - began < seconds);
	return done / (now() - began);
}

static int is_hooked(void)
{
	int (*volatile function)(SSL *, void *, int) = SSL_read;

	return *(unsigned char *)function == BREAKPOINT;
}

int main(int argc, char **argv)
{
	SSL_CTX *context = SSL_CTX_new(TLS_method());
	SSL *client, *server;
	int memory;

	check(argc == 5, "pingpong memory|loopback SECONDS CERTIFICATE KEY");
	check(SSL_CTX_use_certificate_file(context, argv[3], PEM) == 1, "the certificate");
	check(SSL_CTX_use_PrivateKey_file(context, argv[4], PEM) == 1, "the key");
	client = SSL_new(context);
	server = SSL_new(context);
	SSL_set_connect_state(client);
	SSL_set_accept_state(server);
	memory = !strcmp(argv[1], "memory");
	(memory ? connect_in_memory : connect_over_loopback)(client, server);
	printf("%f ", round_trips_per_second(client, memory ? server : NULL, atof(argv[2])));
	printf("%s\n", is_hooked() ? "hooked" : "unhooked");
	return 0;
}
