/* SPDX-License-Identifier: (MIT OR GPL-2.0-only) */
/*
 * Where the two witnesses differ: bytes that left on a watched socket without one of
 * the system calls that send, or by a task that is not watched; a socket that was
 * made outside; and the calls that reach into another process.
 */
#ifndef AGENTWATCH_DIVERGENCE_H
#define AGENTWATCH_DIVERGENCE_H

#include "sock.h"

#define NR_SENDFILE    40
#define NR_IO_SUBMIT   209
#define NR_SPLICE      275
#define IO_WORKER_FLAG 0x10 /* PF_IO_WORKER */

/* How the running send came about, if it was none of the plain calls; 0: it was. */
static inline __attribute__((always_inline)) u32 technique_of_send(void *sk)
{
	void *task = (void *)bpf_get_current_task_btf();
	void *regs = registers();
	void *ring = NULL;
	u64 nr = 0, fd = 0;
	u32 status = 0, flags = 0;

	KREAD(flags, task, OFF(task_struct, flags));
	if (flags & IO_WORKER_FLAG)
		return AW_T_IO_URING;
	KREAD(status, task, OFF(task_struct, thread_info) + OFF(thread_info, status));
	if (status & TS_COMPAT_FLAG)
		return AW_T_COMPAT;
	KREAD(nr, regs, OFF(pt_regs, orig_ax));
	if (nr == NR_SENDFILE)
		return AW_T_SENDFILE;
	if (nr == NR_SPLICE)
		return AW_T_SPLICE;
	if (nr == NR_IO_SUBMIT)
		return AW_T_AIO;
	/* A send of io_uring can end at the end of any call, so the call must be one on this socket. */
	KREAD(ring, task, OFF(task_struct, io_uring));
	if (!ring)
		return is_sending_call(nr) ? 0 : AW_T_UNKNOWN;
	KREAD(fd, regs, OFF(pt_regs, di));
	return is_sending_call(nr) && sock_of_fd(fd) == sk ? 0 : AW_T_IO_URING;
}

/* Said once for each socket (or process that is reached into), process and technique. */
static inline __attribute__((always_inline)) void
diverge(struct account *a, u32 technique, u64 cookie, u64 inode, u16 family, u32 target)
{
	struct aw_divergence e = {};
	struct diverged key = { .identity = inode ? inode : target,
				.tgid = bpf_get_current_pid_tgid() >> 32,
				.technique = technique };
	u8 one = 1;

	if (diverged.lookup(&key))
		return;
	diverged.update(&key, &one);
	fill_header(&e.h, AW_DIVERGENCE, 0, a->cgroup);
	e.cookie = cookie;
	e.inode = inode;
	e.technique = technique;
	e.target = target;
	e.family = family;
	bpf_get_current_comm(e.comm, sizeof(e.comm));
	submit(a, &e, sizeof(e), 0);
}

/* The cgroup that a socket was made in lies under the watch: its packets are seen. */
static inline __attribute__((always_inline)) int made_inside(void *sk)
{
	void *cgroup = NULL;

	KREAD(cgroup, sk, OFF(sock, sk_cgrp_data) + OFF(sock_cgroup_data, cgroup));
	return cgroup && watched_cgroup(cgroup) != 0;
}

#endif
