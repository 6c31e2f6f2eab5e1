// SPDX-License-Identifier: Apache-2.0
/*
 * connect_race PORT PORT: connect many times while a second thread changes the address. Prints the port of each
 * connection's peer, which is where it really went.
 */
#include "pg.h"
#include <pthread.h>

static struct sockaddr_in shared = { .sin_family = AF_INET };
static in_port_t ports[2];
static volatile int begun, over;

static void *change(void *unused)
{
	for (unsigned i = 0; !over; i++) {
		*(volatile in_port_t *)&shared.sin_port = ports[i & 1];
		begun = i;
	}
	return unused;
}

int main(int argc, char **argv)
{
	pthread_t thread;

	(void)argc;
	inet_pton(AF_INET, "127.0.0.1", &shared.sin_addr);
	ports[0] = htons(atoi(argv[1]));
	ports[1] = htons(atoi(argv[2]));
	shared.sin_port = ports[0];
	MUST(pthread_create(&thread, NULL, change, NULL));
	while (begun < 2)
		;
	for (int i = 0, ports_seen = 0; i < 100 || (ports_seen != 3 && i < 1000); i++) {
		struct sockaddr_in peer;
		socklen_t len = sizeof(peer);
		int fd = MUST(socket(AF_INET, SOCK_STREAM, 0));

		MUST(connect(fd, (struct sockaddr *)&shared, sizeof(shared)));
		MUST(getpeername(fd, (struct sockaddr *)&peer, &len));
		printf("%d\n", ntohs(peer.sin_port));
		ports_seen |= peer.sin_port == ports[0] ? 1 : 2;
		close(fd);
	}
	over = 1;
	pthread_join(thread, NULL);
	return 0;
}
