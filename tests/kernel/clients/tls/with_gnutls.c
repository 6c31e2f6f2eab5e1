/* SPDX-License-Identifier: Apache-2.0 */
/*
 * with_gnutls FILE [cork]: PostgreSQL's protocol by hand, over GnuTLS. Opens two connections,
 * "a" and "b", and sends each line of FILE as a simple query: the line's first word is the
 * connection's name. With "cork" each message is collected first and sent by uncorking. Whether
 * the server answers with rows or with an error does not matter here.
 */
#include <arpa/inet.h>
#include <gnutls/gnutls.h>
#include <netinet/in.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#define SSL_REQUEST  80877103
#define PROTOCOL_3_0 196608
#define HEADER_BYTES 5

struct connection {
	gnutls_session_t session;
	int fd;
	int cork;
};

static void check(int ok, const char *what)
{
	if (ok)
		return;
	fprintf(stderr, "with_gnutls: %s\n", what);
	exit(1);
}

static const char *setting(const char *name)
{
	const char *value = getenv(name);

	check(value != NULL, name);
	return value;
}

static void put_length(char *to, size_t length)
{
	uint32_t network = htonl(length);

	memcpy(to, &network, sizeof(network));
}

static void send_all(struct connection *to, const char *data, size_t length)
{
	ssize_t sent;

	if (to->cork)
		gnutls_record_cork(to->session);
	while (length > 0) {
		sent = gnutls_record_send(to->session, data, length);
		if (sent == GNUTLS_E_AGAIN || sent == GNUTLS_E_INTERRUPTED)
			continue;
		check(sent > 0, "gnutls_record_send");
		data += sent;
		length -= sent;
	}
	if (to->cork)
		check(gnutls_record_uncork(to->session, GNUTLS_RECORD_WAIT) >= 0,
		      "gnutls_record_uncork");
}

static void receive_all(struct connection *from, char *data, size_t length)
{
	ssize_t received;

	while (length > 0) {
		received = gnutls_record_recv(from->session, data, length);
		if (received == GNUTLS_E_AGAIN || received == GNUTLS_E_INTERRUPTED)
			continue;
		check(received > 0, "gnutls_record_recv");
		data += received;
		length -= received;
	}
}

/* Message by message, as libraries do that do not read ahead: its header, then its body. */
static void wait_ready(struct connection *from)
{
	char header[HEADER_BYTES], *body;
	uint32_t length;

	do {
		receive_all(from, header, sizeof(header));
		memcpy(&length, header + 1, sizeof(length));
		length = ntohl(length) - sizeof(length);
		body = malloc(length + 1);
		check(body != NULL, "malloc");
		receive_all(from, body, length);
		free(body);
	} while (header[0] != 'Z');
}

static void query(struct connection *to, const char *text)
{
	size_t length = strlen(text) + 1;
	char *message = malloc(HEADER_BYTES + length);

	check(message != NULL, "malloc");
	message[0] = 'Q';
	put_length(message + 1, sizeof(uint32_t) + length);
	memcpy(message + HEADER_BYTES, text, length);
	send_all(to, message, HEADER_BYTES + length);
	free(message);
	wait_ready(to);
}

static void ask_for_tls(int fd)
{
	uint32_t request[2] = { htonl(sizeof(request)), htonl(SSL_REQUEST) };
	char answer;

	check(write(fd, request, sizeof(request)) == sizeof(request), "write");
	check(read(fd, &answer, 1) == 1 && answer == 'S', "the server does not speak TLS");
}

static void start(struct connection *one)
{
	char message[1024];
	int length = 2 * sizeof(uint32_t);

	length += snprintf(message + length, sizeof(message) - length, "user%c%s%cdatabase%c%s%c",
			   0, setting("PGUSER"), 0, 0, setting("PGDATABASE"), 0);
	check(length < (int)sizeof(message) - 1, "the names are too long");
	message[length++] = 0;
	put_length(message, length);
	put_length(message + sizeof(uint32_t), PROTOCOL_3_0);
	send_all(one, message, length);
	wait_ready(one);
}

static void open_connection(struct connection *one, gnutls_certificate_credentials_t any, int cork)
{
	struct sockaddr_in server = { .sin_family = AF_INET };
	int status;

	server.sin_port = htons(atoi(setting("PGPORT")));
	check(inet_pton(AF_INET, setting("PGHOST"), &server.sin_addr) == 1, "PGHOST: no address");
	one->cork = cork;
	one->fd = socket(AF_INET, SOCK_STREAM, 0);
	check(connect(one->fd, (struct sockaddr *)&server, sizeof(server)) == 0, "connect");
	ask_for_tls(one->fd);
	check(gnutls_init(&one->session, GNUTLS_CLIENT) == 0, "gnutls_init");
	check(gnutls_set_default_priority(one->session) == 0, "gnutls_set_default_priority");
	gnutls_credentials_set(one->session, GNUTLS_CRD_CERTIFICATE, any);
	gnutls_transport_set_int(one->session, one->fd);
	do {
		status = gnutls_handshake(one->session);
	} while (status < 0 && !gnutls_error_is_fatal(status));
	check(status == 0, gnutls_strerror(status));
	start(one);
}

static void close_connection(struct connection *one)
{
	char terminate[HEADER_BYTES] = "X";

	put_length(terminate + 1, sizeof(uint32_t));
	send_all(one, terminate, sizeof(terminate));
	gnutls_bye(one->session, GNUTLS_SHUT_WR);
	gnutls_deinit(one->session);
	close(one->fd);
}

int main(int argc, char **argv)
{
	gnutls_certificate_credentials_t any;
	struct connection both[2];
	char *line = NULL;
	size_t room = 0;
	ssize_t length;
	FILE *file;

	check(argc > 1, "usage: with_gnutls FILE [cork]");
	file = fopen(argv[1], "r");
	check(file != NULL, argv[1]);
	check(gnutls_certificate_allocate_credentials(&any) == 0, "no credentials");
	for (int i = 0; i < 2; i++)
		open_connection(&both[i], any, argc > 2 && strcmp(argv[2], "cork") == 0);
	while ((length = getline(&line, &room, file)) > 0) {
		line[length - 1] = 0;
		check(length > 3 && (line[0] == 'a' || line[0] == 'b') && line[1] == ' ', line);
		query(&both[line[0] - 'a'], line + 2);
	}
	for (int i = 0; i < 2; i++)
		close_connection(&both[i]);
	gnutls_certificate_free_credentials(any);
	free(line);
	fclose(file);
	return 0;
}
