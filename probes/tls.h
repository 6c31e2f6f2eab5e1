/* SPDX-License-Identifier: (MIT OR GPL-2.0-only) */
/*
 * Which call into a TLS library a task is in, and on which socket that call does its
 * I/O: what is sent or received while it runs, and begins as TLS does, is the
 * connection's. Neither "the last socket of this thread" nor a descriptor in a
 * library's private struct is ever taken for it.
 */
#ifndef AGENTWATCH_TLS_H
#define AGENTWATCH_TLS_H

#include "sock.h"

/* RFC 8446, 5.1: change_cipher_spec, alert, handshake, application_data; version 3.1 to 3.4 */
#define TLS_FIRST_TYPE 20
#define TLS_LAST_TYPE  23
#define TLS_MAJOR      3
#define TLS_MINORS     4

/* Where Go keeps the running goroutine: the word before the thread's fs segment (runtime/tls_linux_amd64.s). */
static inline __attribute__((always_inline)) u64 goroutine(void)
{
	void *task = (void *)bpf_get_current_task_btf();
	u64 fs = 0, g = 0;

	KREAD(fs, task, OFF(task_struct, thread) + OFF(thread_struct, fsbase));
	if (!fs || bpf_probe_read_user(&g, sizeof(g), (void *)fs - 8))
		return 0;
	return g;
}

static inline __attribute__((always_inline)) struct tls_caller this_thread(void)
{
	u64 id = bpf_get_current_pid_tgid();
	struct tls_caller caller = { .tgid = id >> 32, .context = (u32)id };

	return caller;
}

/* The TLS call that the current task is in, NULL when it is in none. */
static inline __attribute__((always_inline)) struct tls_call *tls_call_of(struct tag *tag)
{
	struct tls_caller caller = this_thread();
	struct tls_call *call;

	if (tag->goroutines) {
		struct tls_caller go = caller;

		go.context = goroutine();
		call = tls_calls.lookup(&go);
		if (call)
			return call;
	}
	return tls_calls.lookup(&caller);
}

static inline __attribute__((always_inline)) void forget_tls_call(void)
{
	struct tls_caller caller = this_thread();

	tls_calls.delete(&caller);
}

static inline __attribute__((always_inline)) int is_record_header(const u8 *b)
{
	return b[0] >= TLS_FIRST_TYPE && b[0] <= TLS_LAST_TYPE && b[1] == TLS_MAJOR &&
	       b[2] <= TLS_MINORS;
}

/* Where the first byte lies that the running system call has sent or received; 0: it is not known. */
static inline __attribute__((always_inline)) u64 first_byte(void)
{
	void *regs = registers();
	u64 nr = 0, second = 0, iov = 0, base = 0;

	KREAD(nr, regs, OFF(pt_regs, orig_ax));
	KREAD(second, regs, OFF(pt_regs, si));
	if (nr == NR_WRITE || nr == NR_SENDTO || nr == NR_READ || nr == NR_RECVFROM)
		return second;
	if (nr == NR_WRITEV || nr == NR_READV || nr == NR_PWRITEV2 || nr == NR_PREADV2)
		iov = second;
	else if (nr == NR_SENDMSG || nr == NR_RECVMSG)
		bpf_probe_read_user(&iov, sizeof(iov), (void *)second + 16); /* msg_iov */
	if (iov)
		bpf_probe_read_user(&base, sizeof(base), (void *)iov);
	return base;
}

/*
 * The current task has sent or received on an IP socket. If a TLS call does that, its connection
 * is on this socket. A record that is sent in pieces began on it.
 */
static inline __attribute__((always_inline)) void note_tls_socket(struct tag *tag, u64 cookie)
{
	struct tls_call *call = tls_call_of(tag);
	u8 header[4] = {};
	u64 at;

	if (!call || !cookie || call->socket == cookie)
		return;
	at = first_byte();
	if (!at || bpf_probe_read_user(header, 3, (void *)at) || !is_record_header(header))
		return;
	call->socket = cookie;
}

#endif
