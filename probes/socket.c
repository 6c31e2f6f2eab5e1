/* SPDX-License-Identifier: (MIT OR GPL-2.0-only) */
/*
 * What watched tasks do to sockets: connect (all families), and send and
 * receive on Unix sockets, which no packet ever shows.
 *
 * The hooks for send and receive are the socket layer's own tracepoints, not
 * those of the ten system calls: they fire for sockets only, so the host's file
 * I/O pays nothing, they tell the socket and the result, and they fire after the
 * kernel has touched the buffer, so it is resident. The buffer itself is found
 * from the registers of the system call that is running; a caller that has none
 * of the expected ones (io_uring, splice) is marked AW_F_ASYNC and declared.
 */
#include "sock.h"

#define STATE_ESTABLISHED 1
#define STATE_SYN_SENT	  2

#define MSG_OOB_FLAG	 1
#define MSG_PEEK_FLAG	 2
#define SOL_SOCKET_LEVEL 1
#define SCM_RIGHTS_TYPE	 1

#define UNIX_PIECE 32768ULL
/*
 * Steps of one run of on_more_pieces: an iovec or a piece each. The kernel allows
 * 33 tail calls: 2112 steps are the 1024 iovecs a call can have, each with a
 * piece, or 69 MB in one buffer.
 */
#define UNIX_PIECES 64

struct iovec64 {
	u64 base;
	u64 len;
};

struct msghdr64 {
	u64 name;
	u32 namelen;
	u32 pad;
	u64 iov;
	u64 iovlen;
	u64 control;
	u64 controllen;
	u64 flags;
};

struct cmsghdr64 {
	u64 len;
	s32 level;
	s32 type;
};

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

static inline __attribute__((always_inline)) void local_address(struct aw_connect *e, void *sk)
{
	KREAD(e->local_port, sk, OFF(sock_common, skc_num));
	if (e->family == FAMILY_INET6)
		bpf_probe_read_kernel(e->local, 16, sk + OFF(sock_common, skc_v6_rcv_saddr));
	else
		bpf_probe_read_kernel(e->local, 4, sk + OFF(sock_common, skc_rcv_saddr));
}

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
	struct aw_counters *c;

	if (!watched())
		return 0;
	c = counters_of(AW_P_CONNECT);
	if (!c)
		return 0;
	call.start = bpf_ktime_get_boot_ns();
	call.fd = ctx->fd;
	call.address = ctx->address;
	if (connecting.update(&id, &call)) {
		lose(c, AW_LOST_MAP, 0);
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
	struct aw_counters *c = counters_of(AW_P_CONNECT);
	struct pending p = {};

	if (!c)
		return 1;

	p.start = bpf_ktime_get_boot_ns();
	fill_header(&p.event.h, AW_CONNECT, 0, tag ? tag->cgroup : bpf_get_current_cgroup_id());
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
	remember_owner(c, cookie, p.event.h.cgroup);
	if (pending.update(&cookie, &p)) {
		lose(c, AW_LOST_MAP, 0);
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
	struct aw_counters *c = counters_of(AW_P_CONNECT);
	u8 one = 1;

	if (!c)
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
	fill_header(&e.h, AW_CONNECT, 0, tag ? tag->cgroup : bpf_get_current_cgroup_id());
	remember_owner(c, key.cookie, e.h.cgroup);
	e.cookie = key.cookie;
	e.fd = -1;
	e.family = family;
	e.protocol = PROTOCOL_UDP;
	e.remote_port = key.port;
	__builtin_memcpy(e.remote, key.address, 16);
	submit(c, &e, sizeof(e), 0);
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
report_pending(struct aw_counters *c, struct pending *p, void *sk, s32 result)
{
	struct aw_connect e = p->event;

	e.result = result;
	e.latency = bpf_ktime_get_boot_ns() - p->start;
	if (sk) {
		e.inode = inode_of_sock(sk);
		local_address(&e, sk);
	}
	submit(c, &e, sizeof(e), 0);
}

/* connect on a Unix socket, or on an IP socket that no cgroup hook saw. */
static inline __attribute__((always_inline)) void
report_call(struct aw_counters *c, struct connecting *call, struct tag *tag, void *sk, s32 result)
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
	e.family = family;
	if (sk) {
		e.inode = inode_of_sock(sk);
		e.cookie = cookie_of_sock(sk);
	}
	if (family == FAMILY_UNIX) {
		if (sk && result == 0)
			e.path_len = peer_path(sk, e.path);
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
	} else {
		return;
	}
	submit(c, &e, sizeof(e), 0);
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
	struct aw_counters *c;
	struct pending *p;
	struct tag *tag = watched();
	s32 result = ctx->result;
	void *sk;

	if (!tag)
		return 0;
	c = counters_of(AW_P_CONNECT);
	found = connecting.lookup(&id);
	if (!found || !c)
		return 0;
	call = *found;
	connecting.delete(&id);
	sk = sock_of_fd(call.fd);
	if (!call.cookie) {
		/* A second connect on a socket that is being connected asks for the result and makes nothing new. */
		if (result == -EALREADY_NR || result == -EISCONN_NR ||
		    (sk && result == 0 && family_of_sock(sk) != FAMILY_UNIX))
			return 0;
		report_call(c, &call, tag, sk, result);
		return 0;
	}
	p = pending.lookup(&call.cookie);
	if (!p)
		return 0;
	if (result == -EINPROGRESS_NR && !p->done) {
		p->returned = 1;
		return 0;
	}
	report_pending(c, p, sk, result == -EINPROGRESS_NR ? p->result : result);
	pending.delete(&call.cookie);
	return 0;
}

/* inet_sock_set_state(sk, oldstate, newstate): how a connection that outlived its system call ended up. */
int on_set_state(struct bpf_raw_tracepoint_args *ctx)
{
	void *sk = (void *)ctx->args[0];
	struct aw_counters *c;
	struct pending *p;
	u64 cookie;
	s32 error = 0;

	if (ctx->args[1] != STATE_SYN_SENT)
		return 0;
	cookie = cookie_of_sock(sk);
	if (!cookie)
		return 0;
	p = pending.lookup(&cookie);
	c = counters_of(AW_P_CONNECT);
	if (!p || !c)
		return 0;
	if (ctx->args[2] != STATE_ESTABLISHED)
		KREAD(error, sk, OFF(sock, sk_err));
	p->result = -error;
	p->done = 1;
	if (p->returned) {
		report_pending(c, p, sk, p->result);
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
	struct aw_counters *c = counters_of(AW_P_SOCK_END);
	struct aw_sock_end e = {};

	if (!c)
		return 1;
	if (p) {
		report_pending(c, p, NULL, -EINPROGRESS_NR);
		pending.delete(&cookie);
	}
	fill_header(&e.h, AW_SOCK_END, 0, o ? o->cgroup : 0);
	e.cookie = cookie;
	e.protocol = ctx->protocol;
	submit(c, &e, sizeof(e), 0);
	owners.delete(&cookie);
	return 1;
}

/* Where the bytes of the running send or receive lie in the process. */
struct buffers {
	u64 base; /* of the buffer being read */
	u64 len; /* bytes left in it */
	u64 iov; /* of the next iovec */
	u64 count; /* iovecs left */
	u64 control;
	u64 controllen;
	u16 flags;
};

/* Fill b from the registers of the system call; AW_F_ASYNC when it is not one that we know. */
static inline __attribute__((always_inline)) void find_buffers(struct buffers *b, void *sk,
							       u8 direction)
{
	void *task = (void *)bpf_get_current_task_btf();
	void *regs = registers();
	struct msghdr64 m = {};
	u64 nr = 0, fd = 0, second = 0, third = 0, fourth = 0, id = bpf_get_current_pid_tgid();
	u32 status = 0;
	int is_msg = 0;

	KREAD(status, task, OFF(task_struct, thread_info) + OFF(thread_info, status));
	if (status & TS_COMPAT_FLAG) {
		b->flags = AW_F_COMPAT;
		return;
	}
	KREAD(nr, regs, OFF(pt_regs, orig_ax));
	KREAD(second, regs, OFF(pt_regs, si));
	KREAD(third, regs, OFF(pt_regs, dx));
	KREAD(fourth, regs, OFF(pt_regs, r10));
	KREAD(fd, regs, OFF(pt_regs, di));
	/*
	 * io_uring finishes a send at the end of some other call, or in a worker with a copy of
	 * its registers: a call on another descriptor is not the one that sent these bytes.
	 */
	if (sock_of_fd(fd) != sk) {
		b->flags = AW_F_ASYNC;
		return;
	}
	b->flags = AW_F_USER_MEMORY;
	if (direction == AW_OUT) {
		u64 flags = nr == NR_SENDTO || nr == NR_SENDMMSG ? fourth :
			    nr == NR_SENDMSG			 ? third :
								   0;

		if (flags & MSG_OOB_FLAG)
			b->flags |= AW_F_URGENT;
	}
	if (direction == AW_OUT ? nr == NR_WRITE || nr == NR_SENDTO :
				  nr == NR_READ || nr == NR_RECVFROM) {
		b->base = second;
		b->len = third;
	} else if (direction == AW_OUT ? nr == NR_WRITEV || nr == NR_PWRITEV2 :
					 nr == NR_READV || nr == NR_PREADV2) {
		b->iov = second;
		b->count = third;
	} else if (direction == AW_OUT ? nr == NR_SENDMSG : nr == NR_RECVMSG) {
		is_msg = 1;
	} else if (direction == AW_OUT ? nr == NR_SENDMMSG : nr == NR_RECVMMSG) {
		u32 *index = mmsg_index.lookup(&id);
		u32 next = index ? *index : 0;

		is_msg = 1;
		second += 64ULL * next;
		next++;
		mmsg_index.update(&id, &next);
	} else {
		b->flags = AW_F_ASYNC;
	}
	if (!is_msg)
		return;
	bpf_probe_read_user(&m, sizeof(m), (void *)second);
	b->iov = m.iov;
	b->count = m.iovlen;
	b->control = m.control;
	b->controllen = m.controllen;
}

static inline __attribute__((always_inline)) int passes_rights(struct buffers *b)
{
	struct cmsghdr64 c = {};

	if (!b->control || b->controllen < sizeof(c))
		return 0;
	bpf_probe_read_user(&c, sizeof(c), (void *)b->control);
	return c.level == SOL_SOCKET_LEVEL && c.type == SCM_RIGHTS_TYPE && c.len > sizeof(c) &&
	       c.len <= b->controllen;
}

static inline __attribute__((always_inline)) void unix_open(struct aw_counters *c, struct tag *tag,
							    void *sk, u64 inode)
{
	struct aw_unix_open e = {};
	void *pid = NULL;
	u16 type = 0;
	u8 one = 1;

	if (unix_seen.lookup(&inode))
		return;
	unix_seen.update(&inode, &one);
	fill_header(&e.h, AW_UNIX_OPEN, 0, tag->cgroup);
	e.inode = inode;
	e.cookie = cookie_of_sock(sk);
	KREAD(type, sk, OFF(sock, sk_type));
	e.type = type;
	KREAD(pid, sk, OFF(sock, sk_peer_pid));
	if (pid)
		KREAD(e.peer_tgid, pid, OFF(pid, numbers) + OFF(upid, nr));
	e.path_len = peer_path(sk, e.path);
	submit(c, &e, sizeof(e), 0);
}

/* A send or receive that is being copied out; kept in the scratch slot between tail calls. */
struct copying {
	struct buffers b;
	u64 done; /* bytes of the call that were dealt with */
	u64 total;
	u64 program;
};

/* The last part of a scratch slot. An event ends well before it. */
#define COPYING_AT (SCRATCH_BYTES - sizeof(struct copying))

/* Copy out up to UNIX_PIECES buffers. 1: there is more. */
static inline __attribute__((always_inline)) int copy_pieces(struct scratch *s, struct copying *k,
							     struct aw_counters *c)
{
	struct aw_unix *e = (struct aw_unix *)s->data;
	int i;

	for (i = 0; i < UNIX_PIECES; i++) {
		u64 n = k->total - k->done;
		u64 len = k->b.len;
		u64 captured;

		if (k->done >= k->total)
			return 0;
		if (!len) {
			struct iovec64 v = {};

			if (!k->b.count || bpf_probe_read_user(&v, sizeof(v), (void *)k->b.iov))
				return 0;
			k->b.iov += sizeof(v);
			k->b.count--;
			k->b.base = v.base;
			k->b.len = v.len;
			continue;
		}
		if (n > len)
			n = len;
		if (n > UNIX_PIECE)
			n = UNIX_PIECE;
		KEEP_BOUND(n);
		if (n > UNIX_PIECE)
			return 0;
		captured = n;
		if (bpf_probe_read_user(s->data + sizeof(*e), n, (void *)k->b.base)) {
			lose_bytes(c, AW_LOST_MEMORY, n);
			captured = 0;
		}
		e->offset = k->done;
		e->payload = n;
		e->captured = captured;
		submit(c, e, sizeof(*e) + captured, captured);
		k->done += n;
		k->b.base += n;
		k->b.len -= n;
	}
	return 1;
}

/* What was not reached is told as one piece without bytes: their number is never lost. */
static inline __attribute__((always_inline)) void tell_rest(struct scratch *s, struct copying *k,
							    struct aw_counters *c)
{
	struct aw_unix *e = (struct aw_unix *)s->data;

	if (k->done >= k->total)
		return;
	e->offset = k->done;
	e->payload = k->total - k->done;
	e->captured = 0;
	lose_bytes(c, k->b.flags & AW_F_USER_MEMORY ? AW_LOST_LIMIT : AW_LOST_MEMORY,
		   k->total - k->done);
	submit(c, e, sizeof(*e), 0);
}

/* Copies out what unix_call found, calling itself while there is more. */
int on_more_pieces(struct bpf_raw_tracepoint_args *ctx)
{
	struct scratch *s = scratch_of_cpu();
	struct aw_counters *c;
	struct copying *k;

	if (!s)
		return 0;
	k = (struct copying *)(s->data + COPYING_AT);
	c = counters_of(k->program);
	if (!c)
		return 0;
	if (copy_pieces(s, k, c))
		continuation.call(ctx, 0);
	tell_rest(s, k, c);
	return 0;
}

static inline __attribute__((always_inline)) int unix_call(void *ctx, struct tag *tag, void *sk,
							   u32 result, u8 direction)
{
	u32 program = direction == AW_OUT ? AW_P_UNIX_SEND : AW_P_UNIX_RECV;
	u64 inode = inode_of_sock(sk);
	struct aw_counters *c = counters_of(program);
	struct scratch *s = scratch_of_cpu();
	struct copying *k;
	struct aw_unix *e;

	if (!s || !c)
		return 0;
	unix_open(c, tag, sk, inode);
	k = (struct copying *)(s->data + COPYING_AT);
	__builtin_memset(k, 0, sizeof(*k));
	k->total = result;
	k->program = program;
	find_buffers(&k->b, sk, direction);
	e = (struct aw_unix *)s->data;
	__builtin_memset(e, 0, sizeof(*e));
	fill_header(&e->h, AW_UNIX, k->b.flags, tag->cgroup);
	if (passes_rights(&k->b))
		e->h.flags |= AW_F_SCM_RIGHTS;
	e->inode = inode;
	e->cookie = cookie_of_sock(sk);
	e->total = result;
	e->direction = direction;
	if (result == 0) { /* the other end has closed */
		submit(c, e, sizeof(*e), 0);
		return 0;
	}
	continuation.call(ctx, 0);
	tell_rest(s, k, c);
	return 0;
}

/* An empty message of a sendmmsg has no bytes to copy, but the next one lies behind it. */
static inline __attribute__((always_inline)) void pass_message(void)
{
	u64 id = bpf_get_current_pid_tgid();
	u64 nr = 0;
	u32 *index = mmsg_index.lookup(&id);
	u32 next = index ? *index + 1 : 1;

	KREAD(nr, registers(), OFF(pt_regs, orig_ax));
	if (nr == NR_SENDMMSG)
		mmsg_index.update(&id, &next);
}

/* sock_send_length(sk, result, flags): after every send on every socket of the host */
int on_sock_send(struct bpf_raw_tracepoint_args *ctx)
{
	struct tag *tag = watched();
	void *sk = (void *)ctx->args[0];
	s32 result = ctx->args[1];
	u16 family;

	if (!tag)
		return 0;
	family = family_of_sock(sk);
	if (result <= 0) {
		if (family == FAMILY_UNIX)
			pass_message();
		return 0;
	}
	if (family == FAMILY_INET || family == FAMILY_INET6) {
		struct aw_counters *c = counters_of(AW_P_CONNECT);
		u64 cookie = cookie_of_sock(sk);

		if (cookie && c)
			remember_owner(c, cookie, tag->cgroup);
		return 0;
	}
	return family == FAMILY_UNIX ? unix_call(ctx, tag, sk, result, AW_OUT) : 0;
}

/* sock_recv_length(sk, result, flags) */
int on_sock_recv(struct bpf_raw_tracepoint_args *ctx)
{
	struct tag *tag = watched();
	void *sk = (void *)ctx->args[0];
	s32 result = ctx->args[1];
	s32 flags = ctx->args[2];

	if (!tag || result < 0 || flags & MSG_PEEK_FLAG)
		return 0;
	return family_of_sock(sk) == FAMILY_UNIX ? unix_call(ctx, tag, sk, result, AW_IN) : 0;
}

/* Ends the count of messages of a sendmmsg or recvmmsg call; attached to the exits of both. */
int on_exit_mmsg(void *ctx)
{
	u64 id = bpf_get_current_pid_tgid();

	mmsg_index.delete(&id);
	return 0;
}
