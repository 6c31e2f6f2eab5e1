/* SPDX-License-Identifier: (MIT OR GPL-2.0-only) */
/*
 * What watched tasks send and receive on Unix sockets, which no packet ever shows.
 *
 * What they send on a connection that they made is copied when the other end has read
 * it, from the memory of the process there: it is what that process got, whatever the
 * sender does to its buffer and by whatever call it sent. Of the sending call only
 * author and length are told. On other sockets (pairs, passed ones, datagrams) the bytes
 * come from the sender's memory.
 *
 * The hooks are the socket layer's own tracepoints, not
 * those of the ten system calls: they fire for sockets only, so the host's file
 * I/O pays nothing, they tell the socket and the result, and they fire after the
 * kernel has touched the buffer, so it is resident. The buffer itself is found
 * from the registers of the system call that is running; a caller that has none
 * of the expected ones (io_uring, splice) is marked AW_F_ASYNC and declared.
 */
#include "divergence.h"
#include "tls.h"

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

/* Remember a socket that is met for the first time; 0: it is not that. */
static inline __attribute__((always_inline)) int is_new(u64 inode, u64 cgroup)
{
	u64 id = bpf_get_current_pid_tgid();
	struct unix_socket fresh = { .cgroup = cgroup, .tgid = id >> 32, .tid = id };

	if (unix_sockets.lookup(&inode))
		return 0;
	unix_sockets.update(&inode, &fresh);
	return 1;
}

static inline __attribute__((always_inline)) void unix_open(struct account *a, struct scratch *s,
							    u64 cgroup, void *sk, u64 inode)
{
	struct aw_unix_open *e = (struct aw_unix_open *)s->data;
	u16 type = 0;

	if (!is_new(inode, cgroup))
		return;
	__builtin_memset(e, 0, sizeof(*e));
	fill_header(&e->h, AW_UNIX_OPEN, 0, cgroup);
	e->inode = inode;
	e->cookie = cookie_of_sock(sk);
	KREAD(type, sk, OFF(sock, sk_type));
	e->type = type;
	e->peer_tgid = peer_tgid(sk);
	e->path_len = peer_path(sk, e->path);
	submit(a, e, sizeof(*e), 0);
}

/* The first sight of an IP socket that was made outside: no packet of it is seen. */
static inline __attribute__((always_inline)) void
outside_open(struct account *a, struct scratch *s, u64 cgroup, void *sk, u64 inode, u16 family)
{
	struct aw_connect *e = (struct aw_connect *)s->data;
	u16 port = 0;

	if (!is_new(inode, cgroup))
		return;
	__builtin_memset(e, 0, sizeof(*e));
	fill_header(&e->h, AW_OUTSIDE, 0, cgroup);
	e->inode = inode;
	e->cookie = cookie_of_sock(sk);
	e->fd = -1;
	e->family = family;
	KREAD(e->protocol, sk, OFF(sock, sk_protocol));
	KREAD(port, sk, OFF(sock_common, skc_dport));
	e->remote_port = bpf_ntohs(port);
	if (family == FAMILY_INET6)
		bpf_probe_read_kernel(e->remote, 16, sk + OFF(sock_common, skc_v6_daddr));
	else
		bpf_probe_read_kernel(e->remote, 4, sk + OFF(sock_common, skc_daddr));
	local_address(e, sk);
	submit(a, e, sizeof(*e), 0);
}

/* A send or receive that is being copied out; kept in the scratch slot between tail calls. */
struct copying {
	struct buffers b;
	u64 done; /* bytes of the call that were dealt with */
	u64 total;
	u64 program;
	u64 cgroup;
};

/* The last part of a scratch slot. An event ends well before it. */
#define COPYING_AT (SCRATCH_BYTES - sizeof(struct copying))

/* Copy out up to UNIX_PIECES buffers. 1: there is more. */
static inline __attribute__((always_inline)) int copy_pieces(struct scratch *s, struct copying *k,
							     struct account *a)
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
			lose_bytes(a, AW_LOST_MEMORY, n);
			captured = 0;
		}
		e->offset = k->done;
		e->payload = n;
		e->captured = captured;
		submit_payload(a, e, sizeof(*e) + captured, captured);
		k->done += n;
		k->b.base += n;
		k->b.len -= n;
	}
	return 1;
}

/* What was not reached is told as one piece without bytes: their number is never lost. */
static inline __attribute__((always_inline)) void tell_rest(struct scratch *s, struct copying *k,
							    struct account *a)
{
	struct aw_unix *e = (struct aw_unix *)s->data;

	if (k->done >= k->total)
		return;
	e->offset = k->done;
	e->payload = k->total - k->done;
	e->captured = 0;
	lose_bytes(a, k->b.flags & AW_F_USER_MEMORY ? AW_LOST_LIMIT : AW_LOST_MEMORY,
		   k->total - k->done);
	submit_payload(a, e, sizeof(*e), 0);
}

/* Copies out what unix_call found, calling itself while there is more. */
int on_more_pieces(struct bpf_raw_tracepoint_args *ctx)
{
	struct scratch *s = scratch_of_cpu();
	struct copying *k;
	struct account a;

	if (!s)
		return 0;
	k = (struct copying *)(s->data + COPYING_AT);
	if (!open_account(&a, k->program, k->cgroup))
		return 0;
	if (copy_pieces(s, k, &a))
		continuation.call(ctx, 0);
	tell_rest(s, k, &a);
	if (k->program != AW_P_UNIX_COPY)
		hold_back(&a); /* the other end is not the agent's */
	return 0;
}

/* A send or receive, and whose it is. */
struct call {
	u64 inode;
	u64 cookie;
	u64 cgroup;
	u32 tgid;
	u32 tid;
	u32 result;
	u32 position;
	u16 flags;
	u16 kind;
	u8 direction;
	u8 by_reader;
};

static inline __attribute__((always_inline)) struct aw_unix *fill_unix(struct scratch *s,
								       struct call *c)
{
	struct aw_unix *e = (struct aw_unix *)s->data;

	__builtin_memset(e, 0, sizeof(*e));
	fill_header(&e->h, c->kind, c->flags, c->cgroup);
	e->h.tgid = c->tgid;
	e->h.tid = c->tid;
	e->inode = c->inode;
	e->cookie = c->cookie;
	e->total = c->result;
	e->direction = c->direction;
	e->by_reader = c->by_reader;
	e->position = c->position;
	return e;
}

/* Copy the bytes of the running call on sk, or say that they are only counted. */
static inline __attribute__((always_inline)) int
copy_call(void *ctx, struct scratch *s, struct copying *k, struct account *a, struct call *c)
{
	struct aw_unix *e;

	k->total = c->result;
	k->program = a->program;
	k->cgroup = c->cgroup;
	c->flags |= k->b.flags;
	e = fill_unix(s, c);
	if (c->result == 0) { /* the other end has closed */
		submit(a, e, sizeof(*e), 0);
		return 0;
	}
	if (unix_flows.lookup(&c->inode) && !(c->flags & (AW_F_SCM_RIGHTS | AW_F_URGENT))) {
		e->h.flags |= AW_F_SUPPRESSED;
		e->payload = c->result;
		__sync_fetch_and_add(&a->counters->counted_bytes, c->result);
		submit_payload(a, e, sizeof(*e), 0);
		return 0;
	}
	continuation.call(ctx, 0);
	tell_rest(s, k, a);
	return 0;
}

static inline __attribute__((always_inline)) struct copying *fresh_copying(struct scratch *s)
{
	struct copying *k = (struct copying *)(s->data + COPYING_AT);

	__builtin_memset(k, 0, sizeof(*k));
	return k;
}

/* A task sends on a socket of a watched process, or a watched one receives: what it gives or gets is in its memory. */
static inline __attribute__((always_inline)) int
unix_call(void *ctx, u64 cgroup, void *sk, u16 family, u32 result, u8 direction, int foreign)
{
	u64 id = bpf_get_current_pid_tgid();
	struct call c = { .cgroup = cgroup,
			  .tgid = id >> 32,
			  .tid = id,
			  .result = result,
			  .kind = AW_UNIX,
			  .direction = direction };
	struct scratch *s = scratch_of_cpu();
	struct unix_socket *known;
	struct copying *k;
	struct account a;
	u32 technique = 0;

	if (!s || !open_account(&a, direction == AW_OUT ? AW_P_UNIX_SEND : AW_P_UNIX_RECV, cgroup))
		return 0;
	c.inode = inode_of_sock(sk);
	c.cookie = cookie_of_sock(sk);
	if (family == FAMILY_UNIX)
		unix_open(&a, s, cgroup, sk, c.inode);
	else
		outside_open(&a, s, cgroup, sk, c.inode, family);
	k = fresh_copying(s);
	find_buffers(&k->b, sk, direction);
	if (direction == AW_OUT) {
		if (foreign)
			technique = AW_T_FOREIGN_TASK;
		else if (!(k->b.flags & AW_F_USER_MEMORY))
			technique = technique_of_send(sk) ?: AW_T_UNKNOWN;
		if (technique) {
			diverge(&a, technique, c.cookie, c.inode, family, 0);
		}
	}
	if (family != FAMILY_UNIX)
		c.flags |= AW_F_OUTSIDE;
	else if (passes_rights(&k->b))
		c.flags |= AW_F_SCM_RIGHTS;
	known = unix_sockets.lookup(&c.inode);
	if (direction == AW_OUT && known && known->by_reader && result) {
		known->tgid = c.tgid;
		known->tid = c.tid;
		c.kind = AW_UNIX_CALL;
		c.flags |= k->b.flags & AW_F_URGENT;
		c.position = __sync_fetch_and_add(&known->sent, (u64)result);
		submit(&a, fill_unix(s, &c), sizeof(struct aw_unix), 0);
		if (!foreign)
			hold_back(&a);
		return 0;
	}
	return copy_call(ctx, s, k, &a, &c);
}

/* The other end of a watched connection has read: these are the bytes that were sent, whoever sent them how. */
static inline __attribute__((always_inline)) int read_by_peer(void *ctx, struct tag *tag, void *sk,
							      struct reader *r, u32 result)
{
	struct unix_socket *from = unix_sockets.lookup(&r->inode);
	struct scratch *s = scratch_of_cpu();
	struct call c = { .inode = r->inode, .result = result, .kind = AW_UNIX, .by_reader = 1 };
	struct copying *k;
	struct account a;

	if (!s || !from || !open_account(&a, AW_P_UNIX_COPY, from->cgroup))
		return 0;
	if (tag) { /* it is watched itself: its own connection only counts what is told of there */
		u64 id = bpf_get_current_pid_tgid();
		struct call own = { .inode = inode_of_sock(sk),
				    .cgroup = tag->cgroup,
				    .tgid = id >> 32,
				    .tid = id,
				    .result = result,
				    .flags = AW_F_SUPPRESSED,
				    .kind = AW_UNIX,
				    .direction = AW_IN };
		struct aw_unix *e = fill_unix(s, &own);

		e->payload = result;
		submit(&a, e, sizeof(*e), 0);
	}
	c.cgroup = from->cgroup;
	c.tgid = from->tgid;
	c.tid = from->tid;
	c.position = __sync_fetch_and_add(&from->read, (u64)result);
	k = fresh_copying(s);
	find_buffers(&k->b, sk, AW_IN);
	return copy_call(ctx, s, k, &a, &c);
}

/* The watched connection whose other end this socket is, NULL if it is none. */
static inline __attribute__((always_inline)) struct reader *reader_of(void *sk)
{
	u64 key = (u64)sk;
	struct reader *r = readers.lookup(&key);
	u64 peer = 0;

	if (!r)
		return NULL;
	/* The memory of a socket that was closed can be another socket now. */
	KREAD(peer, sk, OFF(unix_sock, peer));
	return peer == r->client && peer_tgid(sk) == r->tgid ? r : NULL;
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

/* A task that is not watched has sent on an IP socket of one that is. */
static inline __attribute__((always_inline)) int foreign_send(void *sk, u16 family)
{
	u64 cookie = cookie_of_sock(sk);
	struct owner *o;
	struct account a;

	if (!cookie)
		return 0;
	o = owners.lookup(&cookie);
	if (!o || !open_account(&a, AW_P_OUTSIDE, o->cgroup))
		return 0;
	remember_owner(&a, cookie, o->cgroup);
	diverge(&a, AW_T_FOREIGN_TASK, cookie, inode_of_sock(sk), family, 0);
	return 0;
}

/* Whether an IP socket's packets are seen, which need not be asked of one that was met before. */
static inline __attribute__((always_inline)) int has_packets(void *sk, u64 cookie)
{
	return (cookie && owners.lookup(&cookie)) || made_inside(sk);
}

static inline __attribute__((always_inline)) void inet_sent(struct tag *tag, void *sk, u16 family)
{
	u64 cookie = cookie_of_sock(sk);
	struct account a;
	u32 technique;

	if (!cookie || !open_account(&a, AW_P_CONNECT, tag->cgroup))
		return;
	remember_owner(&a, cookie, tag->cgroup);
	technique = technique_of_send(sk);
	if (technique) {
		diverge(&a, technique, cookie, inode_of_sock(sk), family, 0);
	}
}

/* Whose call it is on this Unix socket: a watched task's, or one's who was given a watched socket. 0: nobody's. */
static inline __attribute__((always_inline)) u64 whose(struct tag *tag, void *sk)
{
	struct unix_socket *known;
	u64 inode;

	if (tag)
		return tag->cgroup;
	inode = inode_of_sock(sk);
	known = unix_sockets.lookup(&inode);
	return known ? known->cgroup : 0;
}

/* sock_send_length(sk, result, flags): after every send on every socket of the host */
int on_sock_send(struct bpf_raw_tracepoint_args *ctx)
{
	struct tag *tag = watched();
	void *sk = (void *)ctx->args[0];
	s32 result = ctx->args[1];
	u16 family = family_of_sock(sk);
	u64 cgroup;

	if (family == FAMILY_INET || family == FAMILY_INET6) {
		if (result <= 0)
			return 0;
		if (!tag)
			return foreign_send(sk, family);
		note_tls_socket(tag, cookie_of_sock(sk));
		if (has_packets(sk, cookie_of_sock(sk))) {
			inet_sent(tag, sk, family);
			return 0;
		}
	} else if (family != FAMILY_UNIX) {
		return 0;
	} else if (result <= 0) {
		if (tag)
			pass_message();
		return 0;
	}
	cgroup = whose(tag, sk);
	if (!cgroup)
		return 0;
	return unix_call(ctx, cgroup, sk, family, result, AW_OUT, !tag);
}

/* sock_recv_length(sk, result, flags) */
int on_sock_recv(struct bpf_raw_tracepoint_args *ctx)
{
	struct tag *tag = watched();
	void *sk = (void *)ctx->args[0];
	s32 result = ctx->args[1];
	s32 flags = ctx->args[2];
	u16 family;
	u64 cgroup;

	if (result < 0 || flags & MSG_PEEK_FLAG)
		return 0;
	family = family_of_sock(sk);
	if (family == FAMILY_UNIX && result) {
		struct reader *r = reader_of(sk);

		if (r)
			return read_by_peer(ctx, tag, sk, r, result);
	}
	if (family == FAMILY_INET || family == FAMILY_INET6) {
		if (!tag)
			return 0;
		if (result)
			note_tls_socket(tag, cookie_of_sock(sk));
		if (has_packets(sk, cookie_of_sock(sk)))
			return 0;
	} else if (family != FAMILY_UNIX) {
		return 0;
	}
	cgroup = whose(tag, sk);
	return cgroup ? unix_call(ctx, cgroup, sk, family, result, AW_IN, !tag) : 0;
}

/* Ends the count of messages of a sendmmsg or recvmmsg call; attached to the exits of both. */
int on_exit_mmsg(void *ctx)
{
	u64 id = bpf_get_current_pid_tgid();

	mmsg_index.delete(&id);
	return 0;
}
