/* SPDX-License-Identifier: (MIT OR GPL-2.0-only) */
/*
 * The connections of watched tasks: connect on any family, how it ended, the
 * peers of datagrams, and the end of a socket.
 */
#include "divergence.h"

#define STATE_ESTABLISHED 1
#define STATE_SYN_SENT	  2
#define SOCK_STREAM_TYPE  1

/* connect(fd, address, length): tracepoint arguments */
struct connect_enter {
	u64 common;
	u64 number;
	u64 fd;
	u64 address;
	u64 length;
};

int on_enter_connect(struct connect_enter *ctx)
{
	u64 id = bpf_get_current_pid_tgid();
	struct connecting call = {};
	struct tag *tag = watched();
	struct account a;

	if (!tag || !open_account(&a, AW_P_CONNECT, tag->cgroup))
		return 0;
	call.start = bpf_ktime_get_boot_ns();
	call.fd = ctx->fd;
	call.address = ctx->address;
	if (connecting.update(&id, &call)) {
		lose(&a, AW_LOST_MAP, 0);
	}
	return 0;
}

/*
 * The address as the kernel copied it. Runs for sockets made in the watched
 * cgroups, whoever connects them and by whatever call.
 */
static inline __attribute__((always_inline)) int cgroup_connect(struct bpf_sock_addr *ctx,
								u16 family)
{
	u64 id = bpf_get_current_pid_tgid();
	u64 cookie = socket_cookie(ctx);
	struct tag *tag = watched();
	struct connecting *call = connecting.lookup(&id);
	struct pending p = {};
	struct account a;

	if (!open_account(&a, AW_P_CONNECT, tag ? tag->cgroup : bpf_get_current_cgroup_id()))
		return 1;

	p.start = bpf_ktime_get_boot_ns();
	fill_header(&p.event.h, AW_CONNECT, 0, a.cgroup);
	p.event.cookie = cookie;
	p.event.family = family;
	p.event.protocol = ctx->protocol;
	p.event.remote_port = bpf_ntohs((u16)ctx->user_port);
	if (family == FAMILY_INET) {
		u32 address = ctx->user_ip4;

		__builtin_memcpy(p.event.remote, &address, 4);
	} else {
		u32 address[4] = { ctx->user_ip6[0], ctx->user_ip6[1], ctx->user_ip6[2],
				   ctx->user_ip6[3] };

		__builtin_memcpy(p.event.remote, address, 16);
	}
	p.event.fd = -1;
	if (call) {
		p.event.fd = call->fd;
		p.start = call->start;
		call->cookie = cookie;
	} else {
		p.event.h.flags |= AW_F_ASYNC;
		p.returned = 1; /* no system call of ours will return: the state machine reports */
	}
	remember_owner(&a, cookie, p.event.h.cgroup);
	if (pending.update(&cookie, &p)) {
		lose(&a, AW_LOST_MAP, 0);
	}
	return 1;
}

int on_connect4(struct bpf_sock_addr *ctx)
{
	return cgroup_connect(ctx, FAMILY_INET);
}

int on_connect6(struct bpf_sock_addr *ctx)
{
	return cgroup_connect(ctx, FAMILY_INET6);
}

/* A datagram to a named peer on an unconnected socket: a peer is reported once for each socket. */
static inline __attribute__((always_inline)) int cgroup_sendmsg(struct bpf_sock_addr *ctx,
								u16 family)
{
	struct udp_peer key = {};
	struct aw_connect e = {};
	struct tag *tag = watched();
	struct account a;
	u8 one = 1;

	if (!open_account(&a, AW_P_CONNECT, tag ? tag->cgroup : bpf_get_current_cgroup_id()))
		return 1;
	key.cookie = socket_cookie(ctx);
	key.family = family;
	key.port = bpf_ntohs((u16)ctx->user_port);
	if (family == FAMILY_INET) {
		u32 address = ctx->user_ip4;

		__builtin_memcpy(key.address, &address, 4);
	} else {
		u32 address[4] = { ctx->user_ip6[0], ctx->user_ip6[1], ctx->user_ip6[2],
				   ctx->user_ip6[3] };

		__builtin_memcpy(key.address, address, 16);
	}
	if (udp_peers.lookup(&key))
		return 1;
	udp_peers.update(&key, &one);
	fill_header(&e.h, AW_CONNECT, 0, a.cgroup);
	remember_owner(&a, key.cookie, e.h.cgroup);
	e.cookie = key.cookie;
	e.fd = -1;
	e.family = family;
	e.protocol = PROTOCOL_UDP;
	e.remote_port = key.port;
	__builtin_memcpy(e.remote, key.address, 16);
	submit(&a, &e, sizeof(e), 0);
	return 1;
}

int on_sendmsg4(struct bpf_sock_addr *ctx)
{
	return cgroup_sendmsg(ctx, FAMILY_INET);
}

int on_sendmsg6(struct bpf_sock_addr *ctx)
{
	return cgroup_sendmsg(ctx, FAMILY_INET6);
}

static inline __attribute__((always_inline)) void
report_pending(struct account *a, struct pending *p, void *sk, s32 result)
{
	struct aw_connect e = p->event;

	e.result = result;
	e.latency = bpf_ktime_get_boot_ns() - p->start;
	if (sk) {
		e.inode = inode_of_sock(sk);
		local_address(&e, sk);
	}
	submit(a, &e, sizeof(e), 0);
}

/* From now on what is sent on this Unix connection is copied where it is read (unix.c). */
static inline __attribute__((always_inline)) void watch_reader(u64 cgroup, void *sk, u64 inode)
{
	u64 id = bpf_get_current_pid_tgid();
	struct unix_socket own = { .cgroup = cgroup, .tgid = id >> 32, .tid = id, .by_reader = 1 };
	struct reader reader = { .inode = inode, .client = (u64)sk, .tgid = id >> 32 };
	u16 type = 0;
	u64 peer = 0;

	KREAD(type, sk, OFF(sock, sk_type));
	KREAD(peer, sk, OFF(unix_sock, peer));
	if (type != SOCK_STREAM_TYPE || !peer || !inode)
		return;
	if (readers.update(&peer, &reader))
		return;
	unix_sockets.update(&inode, &own);
}

/* connect on a Unix socket, or on an IP socket that no cgroup hook saw. */
static inline __attribute__((always_inline)) void
report_call(struct account *a, struct connecting *call, struct tag *tag, void *sk, s32 result)
{
	struct aw_connect e = {};
	u16 family = 0;

	fill_header(&e.h, AW_CONNECT, 0, tag->cgroup);
	e.fd = call->fd;
	e.result = result;
	e.latency = e.h.boottime - call->start;
	e.h.boottime = call->start;
	bpf_probe_read_user(&family, sizeof(family), (void *)call->address);
	if (sk)
		family = family_of_sock(sk);
	if (!family)
		return; /* an end of being connected */
	e.family = family;
	if (sk) {
		e.inode = inode_of_sock(sk);
		e.cookie = cookie_of_sock(sk);
	}
	if (family == FAMILY_UNIX) {
		if (sk && result == 0) {
			e.path_len = peer_path(sk, e.path);
			watch_reader(a->cgroup, sk, e.inode);
		}
		if (!e.path_len) {
			e.h.flags |= AW_F_USER_MEMORY;
			bpf_probe_read_user(e.path, sizeof(e.path), (void *)call->address + 2);
			e.path_len = sizeof(e.path);
		}
	} else if (family == FAMILY_INET || family == FAMILY_INET6) {
		e.h.flags |= AW_F_USER_MEMORY;
		e.protocol = PROTOCOL_TCP;
		if (sk)
			KREAD(e.protocol, sk, OFF(sock, sk_protocol));
		bpf_probe_read_user(&e.remote_port, 2, (void *)call->address + 2);
		e.remote_port = bpf_ntohs(e.remote_port);
		if (family == FAMILY_INET)
			bpf_probe_read_user(e.remote, 4, (void *)call->address + 4);
		else
			bpf_probe_read_user(e.remote, 16, (void *)call->address + 8);
		if (sk)
			local_address(&e, sk);
	} else { /* vsock, netlink, ...: the address as it was given */
		e.h.flags |= AW_F_USER_MEMORY;
		bpf_probe_read_user(e.path, 16, (void *)call->address);
		e.path_len = 16;
	}
	submit(a, &e, sizeof(e), 0);
}

struct connect_exit {
	u64 common;
	u64 number;
	s64 result;
};

int on_exit_connect(struct connect_exit *ctx)
{
	u64 id = bpf_get_current_pid_tgid();
	struct connecting *found;
	struct connecting call;
	struct account a;
	struct pending *p;
	struct tag *tag = watched();
	s32 result = ctx->result;
	void *sk;

	if (!tag)
		return 0;
	found = connecting.lookup(&id);
	if (!found || !open_account(&a, AW_P_CONNECT, tag->cgroup))
		return 0;
	call = *found;
	connecting.delete(&id);
	sk = sock_of_fd(call.fd);
	if (!call.cookie) {
		/* A second connect on a socket that is being connected asks for the result and makes nothing new. */
		if (result == -EALREADY_NR || result == -EISCONN_NR ||
		    (sk && result == 0 && is_inet(sk) && made_inside(sk)))
			return 0;
		report_call(&a, &call, tag, sk, result);
		hold_back(&a);
		return 0;
	}
	p = pending.lookup(&call.cookie);
	if (!p)
		return 0;
	if (result == -EINPROGRESS_NR && !p->done) {
		p->returned = 1;
		return 0;
	}
	report_pending(&a, p, sk, result == -EINPROGRESS_NR ? p->result : result);
	pending.delete(&call.cookie);
	hold_back(&a);
	return 0;
}

/* inet_sock_set_state(sk, oldstate, newstate): how a connection that outlived its system call ended up. */
int on_set_state(struct bpf_raw_tracepoint_args *ctx)
{
	void *sk = (void *)ctx->args[0];
	struct account a;
	struct pending *p;
	u64 cookie;
	s32 error = 0;

	if (ctx->args[1] != STATE_SYN_SENT)
		return 0;
	cookie = cookie_of_sock(sk);
	if (!cookie)
		return 0;
	p = pending.lookup(&cookie);
	if (!p || !open_account(&a, AW_P_CONNECT, p->event.h.cgroup))
		return 0;
	if (ctx->args[2] != STATE_ESTABLISHED)
		KREAD(error, sk, OFF(sock, sk_err));
	p->result = -error;
	p->done = 1;
	if (p->returned) {
		report_pending(&a, p, sk, p->result);
		pending.delete(&cookie);
	}
	return 0;
}

/* The last reference of a socket made in a watched cgroup is closed. */
int on_sock_release(struct bpf_sock *ctx)
{
	u64 cookie = socket_cookie(ctx);
	struct pending *p = pending.lookup(&cookie);
	struct owner *o = owners.lookup(&cookie);
	struct tag *tag = watched();
	struct aw_sock_end e = {};
	struct account a;

	/* One that never wrote has no owner: it is whose task closes it. */
	if (!open_account(&a, AW_P_SOCK_END, o ? o->cgroup : tag ? tag->cgroup : 0))
		return 1;
	if (p) {
		report_pending(&a, p, NULL, -EINPROGRESS_NR);
		pending.delete(&cookie);
	}
	fill_header(&e.h, AW_SOCK_END, 0, a.cgroup);
	e.cookie = cookie;
	e.protocol = ctx->protocol;
	submit(&a, &e, sizeof(e), 0);
	owners.delete(&cookie);
	return 1;
}
