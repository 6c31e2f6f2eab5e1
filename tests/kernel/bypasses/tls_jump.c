// SPDX-License-Identifier: Apache-2.0
/*
 * tls_jump TEXT: a signal handler jumps out of an SSL_read that waits, as timeouts
 * were once written. What is known of that call is not undone by a return. The
 * statement is then sent from deeper in the stack, where it looks like a call within
 * the one that was left.
 */
#include "ssl.h"
#include <alloca.h>
#include <setjmp.h>
#include <signal.h>
#include <sys/time.h>

#define DEPTH 16384

static sigjmp_buf out;

static void jump(int number)
{
	siglongjmp(out, number);
}

static __attribute__((noinline)) void ask_from_below(struct ssl *ssl, const char *text)
{
	volatile char *depth = alloca(DEPTH);

	depth[0] = depth[DEPTH - 1] = 0;
	tls_ask(ssl, text);
}

int main(int argc, char **argv)
{
	struct itimerval soon = { .it_value.tv_usec = 200000 };
	struct ssl *ssl = tls_open();
	char c;

	(void)argc;
	tls_begin(ssl);
	signal(SIGALRM, jump);
	if (!sigsetjmp(out, 1)) {
		setitimer(ITIMER_REAL, &soon, NULL);
		SSL_read(ssl, &c, 1);
		fprintf(stderr, "the server spoke without being asked\n");
		return 3;
	}
	ask_from_below(ssl, argv[1]);
	tls_end(ssl);
	return 0;
}
