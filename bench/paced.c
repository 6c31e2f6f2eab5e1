/* SPDX-License-Identifier: Apache-2.0 */
/*
 * paced exec|send RATE SECONDS: two processes that together run /bin/true, or send 64
 * bytes on a TCP connection, RATE times a second (0: as fast as it goes). Prints
 * the rate that was reached.
 */
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define WORKERS 2

extern char **environ;

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
	perror(what);
	_exit(1);
}

static void run_true(void)
{
	char *argv[] = { "/bin/true", NULL };
	pid_t pid;

	check(posix_spawn(&pid, argv[0], NULL, NULL, argv, environ) == 0, "posix_spawn");
	check(waitpid(pid, NULL, 0) == pid, "waitpid");
}

/* A connection whose other end a child reads and forgets. */
static int sink(void)
{
	struct sockaddr_in address = { .sin_family = AF_INET };
	socklen_t length = sizeof(address);
	int listener = socket(AF_INET, SOCK_STREAM, 0), client = socket(AF_INET, SOCK_STREAM, 0);
	int one = 1;

	address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
	check(bind(listener, (struct sockaddr *)&address, sizeof(address)) == 0, "bind");
	check(listen(listener, 1) == 0, "listen");
	check(getsockname(listener, (struct sockaddr *)&address, &length) == 0, "getsockname");
	if (fork() == 0) {
		static char buffer[65536];
		int server = accept(listener, NULL, NULL);

		close(client);
		while (read(server, buffer, sizeof(buffer)) > 0)
			;
		_exit(0);
	}
	check(connect(client, (struct sockaddr *)&address, sizeof(address)) == 0, "connect");
	setsockopt(client, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one));
	return client;
}

static long work(int sends, double rate, double seconds)
{
	/* Looks like a query of PostgreSQL's, so that every byte is captured and read. */
	char message[64] = "Q\0\0\0\x3fSELECT 1";
	int client = sends ? sink() : -1;
	double begin = now();
	long done = 0;

	memset(message + 13, ' ', sizeof(message) - 14);
	if (sends) {
		char startup[16] = "\0\0\0\x10\0\3\0\0user\0u";

		check(write(client, startup, sizeof(startup)) == sizeof(startup), "write");
	}
	while (now() - begin < seconds) {
		double ahead = rate ? begin + done / rate - now() : 0;

		if (ahead > 0) {
			usleep(ahead > 0.001 ? 1000 : ahead * 1e6);
			continue;
		}
		if (sends)
			check(write(client, message, sizeof(message)) == sizeof(message), "write");
		else
			run_true();
		done++;
	}
	return done;
}

int main(int argc, char **argv)
{
	int sends = argc > 1 && !strcmp(argv[1], "send");
	double rate = argc > 2 ? atof(argv[2]) : 0, seconds = argc > 3 ? atof(argv[3]) : 5;
	long total = 0, done;
	int results[2];

	check(pipe(results) == 0, "pipe");
	for (int i = 0; i < WORKERS; i++) {
		if (fork() == 0) {
			done = work(sends, rate / WORKERS, seconds);
			check(write(results[1], &done, sizeof(done)) == sizeof(done), "write");
			_exit(0);
		}
	}
	for (int i = 0; i < WORKERS; i++) {
		check(read(results[0], &done, sizeof(done)) == sizeof(done), "read");
		total += done;
	}
	printf("%f\n", total / seconds);
	return 0;
}
