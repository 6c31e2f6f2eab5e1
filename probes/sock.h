/* SPDX-License-Identifier: (MIT OR GPL-2.0-only) */
/*
 * Sockets of the current task: from a file descriptor to the kernel's socket,
 * and who wrote on it last.
 */
#ifndef AGENTWATCH_SOCK_H
#define AGENTWATCH_SOCK_H

#include "filter.h"

#define IFMT   0170000
#define IFSOCK 0140000

/* x86-64 system calls */
#define NR_READ	       0
#define NR_WRITE       1
#define NR_READV       19
#define NR_WRITEV      20
#define NR_SENDTO      44
#define NR_RECVFROM    45
#define NR_SENDMSG     46
#define NR_RECVMSG     47
#define NR_RECVMMSG    299
#define NR_SENDMMSG    307
#define NR_PREADV2     327
#define NR_PWRITEV2    328
#define TS_COMPAT_FLAG 2

/* What sys_exit_* tracepoints hand over. */
struct syscall_exit {
	u64 common;
	u64 number;
	s64 result;
};

/* The struct file behind a file descriptor of the current task, NULL when it is not open. */
static inline __attribute__((always_inline)) void *file_of_fd(s32 fd)
{
	void *task = (void *)bpf_get_current_task();
	void *files = NULL, *table = NULL, *array = NULL, *file = NULL;
	u32 max = 0;

	KREAD(files, task, OFF(task_struct, files));
	KREAD(table, files, OFF(files_struct, fdt));
	KREAD(max, table, OFF(fdtable, max_fds));
	if (fd < 0 || (u32)fd >= max)
		return NULL;
	KREAD(array, table, OFF(fdtable, fd));
	KREAD(file, array, 8UL * (u32)fd);
	return file;
}

/* The socket behind a file descriptor of the current task, NULL when it is none. */
static inline __attribute__((always_inline)) void *sock_of_fd(s32 fd)
{
	void *file = file_of_fd(fd);
	void *inode = NULL, *socket = NULL, *sk = NULL;
	u16 mode = 0;

	if (!file)
		return NULL;
	KREAD(inode, file, OFF(file, f_inode));
	KREAD(mode, inode, OFF(inode, i_mode));
	if ((mode & IFMT) != IFSOCK)
		return NULL;
	KREAD(socket, file, OFF(file, private_data));
	KREAD(sk, socket, OFF(socket, sk));
	return sk;
}

static inline __attribute__((always_inline)) u64 inode_of_sock(void *sk)
{
	void *socket = NULL;
	u64 inode = 0;

	KREAD(socket, sk, OFF(sock, sk_socket));
	if (socket)
		KREAD(inode, socket, OFF(socket_alloc, vfs_inode) + OFF(inode, i_ino));
	return inode;
}

static inline __attribute__((always_inline)) u64 cookie_of_sock(void *sk)
{
	u64 cookie = 0;

	KREAD(cookie, sk, OFF(sock_common, skc_cookie));
	return cookie;
}

static inline __attribute__((always_inline)) u16 family_of_sock(void *sk)
{
	u16 family = 0;

	KREAD(family, sk, OFF(sock_common, skc_family));
	return family;
}

static inline __attribute__((always_inline)) int is_inet(void *sk)
{
	u16 family = family_of_sock(sk);

	return family == FAMILY_INET || family == FAMILY_INET6;
}

static inline __attribute__((always_inline)) void *registers(void)
{
	return (void *)bpf_task_pt_regs((void *)bpf_get_current_task_btf());
}

/* The name of the Unix socket at the other end into path; its length, 0 when it has none. */
static inline __attribute__((always_inline)) u32 peer_path(void *sk, u8 *path)
{
	void *peer = NULL, *address = NULL;
	s32 len = 0;

	KREAD(peer, sk, OFF(unix_sock, peer));
	if (!peer)
		return 0;
	KREAD(address, peer, OFF(unix_sock, addr));
	if (!address)
		return 0;
	KREAD(len, address, OFF(unix_address, len));
	len -= 2; /* sun_family */
	if (len <= 0)
		return 0;
	if (len > 108)
		len = 108;
	bpf_probe_read_kernel(path, 108, address + OFF(unix_address, name) + 2);
	return len;
}

static inline __attribute__((always_inline)) int is_sending_call(u64 nr)
{
	return nr == NR_WRITE || nr == NR_SENDTO || nr == NR_SENDMSG || nr == NR_WRITEV ||
	       nr == NR_SENDMMSG || nr == NR_PWRITEV2;
}

static inline __attribute__((always_inline)) void local_address(struct aw_connect *e, void *sk)
{
	KREAD(e->local_port, sk, OFF(sock_common, skc_num));
	if (e->family == FAMILY_INET6)
		bpf_probe_read_kernel(e->local, 16, sk + OFF(sock_common, skc_v6_rcv_saddr));
	else
		bpf_probe_read_kernel(e->local, 4, sk + OFF(sock_common, skc_rcv_saddr));
}

/* The process that SO_PEERCRED tells of. */
static inline __attribute__((always_inline)) u32 peer_tgid(void *sk)
{
	void *pid = NULL;
	u32 tgid = 0;

	KREAD(pid, sk, OFF(sock, sk_peer_pid));
	if (pid)
		KREAD(tgid, pid, OFF(pid, numbers) + OFF(upid, nr));
	return tgid;
}

/* Remember the current task as the last that wrote on a socket. */
static inline __attribute__((always_inline)) void remember_owner(struct account *a, u64 cookie,
								 u64 cgroup)
{
	u64 id = bpf_get_current_pid_tgid();
	struct owner *known = owners.lookup(&cookie);
	struct owner o = { .cgroup = cgroup, .tgid = id >> 32, .tid = id };

	if (known && known->tid == o.tid && known->tgid == o.tgid)
		return;
	if (owners.update(&cookie, &o)) {
		lose(a, AW_LOST_MAP, 0);
	}
}

/*
 * A packet that leaves while its sender is still in the system call: the owner
 * known so far is the one of the call before. The current task is believed when it
 * is in a sending call whose descriptor is this very socket; a soft interrupt
 * that runs on top of some other task is not taken for it.
 */
static inline __attribute__((always_inline)) void refresh_owner(struct account *a, u64 cookie,
								struct owner *o)
{
	u64 id = bpf_get_current_pid_tgid();
	u32 tgid = id >> 32;
	struct tag *tag;
	void *regs, *sk;
	u64 nr = 0, fd = 0;

	if (o->tgid == tgid && o->tid == (u32)id)
		return;
	tag = tags.lookup(&tgid);
	if (!tag && !o->tgid)
		return; /* a task that is not watched writes only on a socket that it was given */
	regs = registers();
	KREAD(nr, regs, OFF(pt_regs, orig_ax));
	if (!is_sending_call(nr))
		return;
	KREAD(fd, regs, OFF(pt_regs, di));
	sk = sock_of_fd(fd);
	if (!sk || cookie_of_sock(sk) != cookie)
		return;
	if (tag)
		o->cgroup = tag->cgroup;
	remember_owner(a, cookie, o->cgroup);
	o->tgid = tgid;
	o->tid = id;
}

#endif
