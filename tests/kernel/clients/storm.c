/* SPDX-License-Identifier: Apache-2.0 */
/*
 * storm WORKERS ROUNDS: processes that do nothing but make events. Each round of a
 * worker runs /bin/true, makes two TCP connections to a server of its own with a
 * send on each, and ten sends through a Unix socket pair.
 */
#include <arpa/inet.h>
#include <netinet/in.h>
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

extern char **environ;

static void check(int ok, const char *what)
{
	if (ok)
		return;
	perror(what);
	_exit(1);
}

static void run_true(void)
{
	char *argv[] = { "/bin/true", "of a storm", NULL };
	pid_t pid;

	check(posix_spawn(&pid, argv[0], NULL, NULL, argv, environ) == 0, "posix_spawn");
	check(waitpid(pid, NULL, 0) == pid, "waitpid");
}

static void connect_and_send(int listener, struct sockaddr_in *address)
{
	/* No TIME_WAIT: the ports would run out. */
	struct linger linger = { .l_onoff = 1 };
	char byte;
	int client = socket(AF_INET, SOCK_STREAM, 0), server;

	check(client >= 0, "socket");
	check(connect(client, (struct sockaddr *)address, sizeof(*address)) == 0, "connect");
	server = accept(listener, NULL, NULL);
	check(server >= 0, "accept");
	check(send(client, "x", 1, 0) == 1, "send");
	check(recv(server, &byte, 1, 0) == 1, "recv");
	setsockopt(client, SOL_SOCKET, SO_LINGER, &linger, sizeof(linger));
	close(client);
	close(server);
}

static void worker(int rounds)
{
	struct sockaddr_in address = { .sin_family = AF_INET };
	socklen_t length = sizeof(address);
	int listener = socket(AF_INET, SOCK_STREAM, 0);
	int pair[2];
	char buffer[64] = "bytes of a storm";

	address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
	check(bind(listener, (struct sockaddr *)&address, sizeof(address)) == 0, "bind");
	check(listen(listener, 8) == 0, "listen");
	getsockname(listener, (struct sockaddr *)&address, &length);
	check(socketpair(AF_UNIX, SOCK_STREAM, 0, pair) == 0, "socketpair");
	for (int round = 0; round < rounds; round++) {
		run_true();
		for (int i = 0; i < 2; i++)
			connect_and_send(listener, &address);
		for (int i = 0; i < 10; i++) {
			check(send(pair[0], buffer, sizeof(buffer), 0) == sizeof(buffer), "send");
			check(recv(pair[1], buffer, sizeof(buffer), 0) == sizeof(buffer), "recv");
		}
	}
}

int main(int argc, char **argv)
{
	int workers = argc > 1 ? atoi(argv[1]) : 8, rounds = argc > 2 ? atoi(argv[2]) : 100;
	int failed = 0, status;

	for (int i = 0; i < workers; i++) {
		if (fork() == 0) {
			worker(rounds);
			_exit(0);
		}
	}
	while (wait(&status) > 0)
		failed |= status;
	return failed != 0;
}
