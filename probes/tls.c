/* SPDX-License-Identifier: (MIT OR GPL-2.0-only) */
/*
 * What watched tasks say and hear over TLS: the plaintext, where they hand it to a
 * library or get it from one. Called by uprobes at the functions' entries and returns;
 * the cookie of a uprobe says what kind of function it is at (enum aw_call), so that
 * these programs know nothing of OpenSSL, GnuTLS or Go but three ways to pass arguments.
 *
 * Bytes are copied when the call returns, from the caller's buffer: only then is it
 * known how many were taken. A call that must be made again counts once. A library that
 * calls itself (SSL_write_ex, SSL_write_ex2) counts once too: the outer call is told
 * from the inner one by the stack pointer.
 *
 * These programs can be preempted, so they have no per-CPU scratch: events are
 * reserved in the ring, and what is under way is in the call's map value.
 */
#include "tls.h"

/* Plaintext of one call: TLS_STEPS pieces in each of 32 programs are 19 MiB. */
#define TLS_STEPS	  10
#define TLS_PIECE	  (65536ULL - sizeof(struct aw_tls))
#define TLS_COUNTED_BYTES (8ULL << 20)
#define TLS_COUNTED_NS	  1000000000ULL
#define RECORD_HEADER	  5
#define TLS_HANDSHAKE	  22
#define TLS_CLIENT_HELLO  1
#define RECORD_BYTES	  32

/* struct pt_regs of x86-64, which a uprobe's program gets. */
struct user_registers {
	u64 r15, r14, r13, r12, bp, bx, r11, r10, r9, r8, ax, cx, dx, si, di;
	u64 orig_ax, ip, cs, flags, sp, ss;
};

static inline __attribute__((always_inline)) struct tls_caller caller_of(struct user_registers *ctx,
									 u64 what)
{
	struct tls_caller caller = this_thread();
	u64 g = ctx->r14;

	if (what & AW_CALL_GO)
		caller.context = g;
	return caller;
}

/* The first argument. The compiler must not choose between two places in ctx by arithmetic on the pointer. */
static inline __attribute__((always_inline)) u64 first_argument(struct user_registers *ctx,
								u64 what)
{
	u64 go = ctx->ax, c = ctx->di;

	KEEP_BOUND(go);
	KEEP_BOUND(c);
	return what & AW_CALL_GO ? go : c;
}

/* One value for each session: no CPU begins two in a nanosecond. */
static inline __attribute__((always_inline)) u64 session_id(void)
{
	return bpf_ktime_get_boot_ns() << 10 | (bpf_get_smp_processor_id() & 1023);
}

static inline __attribute__((always_inline)) struct tls_session *session_of(u64 address)
{
	struct tls_connection key = { .address = address,
				      .tgid = bpf_get_current_pid_tgid() >> 32 };
	struct tls_session fresh = { .id = session_id() };

	return tls_sessions.lookup_or_try_init(&key, &fresh);
}

static inline __attribute__((always_inline)) u32 verdict_of(u64 session)
{
	u32 *verdict = tls_verdicts.lookup(&session);

	return verdict ? *verdict : 0;
}

static inline __attribute__((always_inline)) void fill_tls(struct aw_tls *e, struct account *a,
							   struct tls_call *call, u8 direction)
{
	__builtin_memset(e, 0, sizeof(*e));
	fill_header(&e->h, AW_TLS, AW_F_USER_MEMORY, a->cgroup);
	if (direction == AW_OUT)
		e->h.boottime = call->entered;
	e->session = call->session;
	e->cookie = call->cookie;
	e->position = call->position;
	e->writing = call->writing;
	e->total = call->total;
	e->direction = direction;
}

/* What needs no copying: a tie, bytes that are counted, bytes beyond a limit. */
static inline __attribute__((always_inline)) void tell_tls(struct account *a, struct tls_call *call,
							   u8 direction, u16 flags, u64 payload)
{
	struct aw_tls e;

	fill_tls(&e, a, call, direction);
	e.h.flags |= flags;
	e.offset = call->done;
	e.payload = payload;
	submit_payload(a, &e, sizeof(e), payload);
}

/* A thread has entered a function that sends, receives or takes plaintext. */
static inline __attribute__((always_inline)) int call_begins(struct user_registers *ctx,
							     struct tag *tag, u64 what)
{
	struct tls_caller caller = caller_of(ctx, what);
	struct tls_call call = { .stack = ctx->sp,
				 .entered = bpf_ktime_get_boot_ns(),
				 .what = what };
	struct tls_session *session;
	struct tls_call *outer;
	struct account a;

	call.connection = first_argument(ctx, what);
	if (what & AW_CALL_GO) {
		call.buffer = ctx->bx;
		call.length = ctx->cx;
		tag->goroutines = 1;
	} else {
		call.buffer = what & AW_CALL_NO_BUFFER ? 0 : ctx->si;
		call.length = ctx->dx;
		if ((what & AW_COUNT_WHERE) == AW_COUNT_INT)
			call.length = (u32)ctx->dx;
		if ((what & AW_COUNT_WHERE) == AW_COUNT_FOURTH)
			call.count_at = ctx->cx;
		if ((what & AW_COUNT_WHERE) == AW_COUNT_FIFTH)
			call.count_at = ctx->r8;
		outer = tls_calls.lookup(&caller);
		/*
		 * A library calls itself for the same bytes, for a handshake, or to send what it
		 * had kept of earlier calls. Any other call on the connection says that the outer
		 * one will not return: it was jumped out of.
		 */
		if (outer && outer->stack > call.stack &&
		    (outer->connection != call.connection || outer->buffer == call.buffer ||
		     (what & AW_CALL_KIND) == AW_CALL_IO ||
		     (outer->what & AW_CALL_KIND) == AW_CALL_IO))
			return 0;
	}
	session = session_of(call.connection);
	if (session && (what & AW_CALL_KIND) == AW_CALL_WRITE)
		session->writing = call.entered;
	if (tls_calls.update(&caller, &call) && open_account(&a, AW_P_TLS, tag->cgroup))
		lose(&a, AW_LOST_MAP, 0);
	return 0;
}

/* A library's object begins a new connection without having been freed: nothing of the old one holds for it. */
static inline __attribute__((always_inline)) void begin_anew(struct tls_session *session)
{
	session->id = session_id();
	session->cookie = 0;
	session->position[0] = 0;
	session->position[1] = 0;
	session->untold[0] = 0;
	session->untold[1] = 0;
}

/*
 * A library has made a record. One without a socket of its own is found by it: its first
 * bytes will be seen on the wire.
 */
static inline __attribute__((always_inline)) int record_made(struct user_registers *ctx,
							     struct tag *tag)
{
	struct tls_caller caller = this_thread();
	struct tls_call *call = tls_calls.lookup(&caller);
	struct tls_session *session;
	struct aw_tls_record e = {};
	struct account a;
	u64 n = (u32)ctx->dx;

	if (!call || call->socket || n < RECORD_HEADER)
		return 0;
	session = session_of(call->connection);
	if (!session)
		return 0;
	e.total = n;
	if (n > RECORD_BYTES)
		n = RECORD_BYTES;
	KEEP_BOUND(n);
	if (n > RECORD_BYTES || bpf_probe_read_user(e.data, n, (void *)ctx->si) ||
	    !is_record_header(e.data))
		return 0;
	if (e.data[0] == TLS_HANDSHAKE && e.data[RECORD_HEADER] == TLS_CLIENT_HELLO &&
	    (session->position[0] || session->position[1]))
		begin_anew(session);
	if (session->cookie || verdict_of(session->id) & TLS_TIED ||
	    !open_account(&a, AW_P_TLS, tag->cgroup))
		return 0;
	fill_header(&e.h, AW_TLS_RECORD, AW_F_USER_MEMORY, tag->cgroup);
	e.session = session->id;
	e.captured = n;
	submit(&a, &e, sizeof(e), 0);
	return 0;
}

static inline __attribute__((always_inline)) int connection_freed(struct tag *tag, u64 address)
{
	struct tls_connection key = { .address = address,
				      .tgid = bpf_get_current_pid_tgid() >> 32 };
	struct tls_session *session = tls_sessions.lookup(&key);
	struct aw_tls_end e = {};
	struct account a;

	if (!session || !open_account(&a, AW_P_TLS, tag->cgroup))
		return 0;
	fill_header(&e.h, AW_TLS_END, 0, tag->cgroup);
	e.session = session->id;
	e.position[0] = session->position[0];
	e.position[1] = session->position[1];
	tls_sessions.delete(&key);
	tls_verdicts.delete(&e.session);
	submit(&a, &e, sizeof(e), 0);
	return 0;
}

/* A function's entry. */
int on_tls_enter(struct user_registers *ctx)
{
	u64 what = bpf_get_attach_cookie(ctx);
	struct tag *tag = watched();

	if (!tag)
		return 0;
	if ((what & AW_CALL_KIND) == AW_CALL_RECORD)
		return record_made(ctx, tag);
	if ((what & AW_CALL_KIND) == AW_CALL_FREE)
		return connection_freed(tag, first_argument(ctx, what));
	return call_begins(ctx, tag, what);
}

/* How many bytes the call that returns has taken or given. */
static inline __attribute__((always_inline)) u64 bytes_of_call(struct user_registers *ctx,
							       struct tls_call *call, u64 what)
{
	u64 n = 0;

	if (call->count_at) {
		if ((s32)ctx->ax != 1 || bpf_probe_read_user(&n, sizeof(n), (void *)call->count_at))
			return 0;
	} else if ((what & AW_COUNT_WHERE) == AW_COUNT_ALL) {
		n = (s32)ctx->ax == 0 ? call->length : 0;
	} else if ((what & AW_COUNT_WHERE) == AW_COUNT_LONG) {
		n = (s64)ctx->ax > 0 ? ctx->ax : 0;
	} else {
		n = (s32)ctx->ax > 0 ? (u32)ctx->ax : 0;
	}
	/* Of a file, or of what the library has kept of an earlier call, there is no buffer: it is told without bytes. */
	return call->buffer && n > call->length ? call->length : n;
}

/* Nobody reads this session: told of after some bytes or some time. */
static inline __attribute__((always_inline)) void
count_tls(struct account *a, struct tls_session *session, struct tls_call *call, u8 direction)
{
	u64 *untold = &session->untold[direction & 1];
	u64 total;

	__sync_fetch_and_add(&a->counters->counted_bytes, call->total);
	__sync_fetch_and_add(untold, call->total);
	if (*untold < TLS_COUNTED_BYTES &&
	    bpf_ktime_get_boot_ns() - session->told_at[direction & 1] < TLS_COUNTED_NS)
		return;
	total = *untold;
	*untold = 0;
	session->told_at[direction & 1] = bpf_ktime_get_boot_ns();
	call->position += call->total - total;
	tell_tls(a, call, direction, AW_F_SUPPRESSED, total);
}

/* A function returns (or a Go function is at one of its return instructions). */
int on_tls_return(struct user_registers *ctx)
{
	u64 what = bpf_get_attach_cookie(ctx);
	struct tag *tag = watched();
	struct tls_caller caller;
	struct tls_session *session;
	struct tls_call *call;
	struct account a;
	u8 direction = (what & AW_CALL_KIND) == AW_CALL_READ ? AW_IN : AW_OUT;
	u64 n = 0;
	int tied = 0, overtaken = 0;

	if (!tag)
		return 0;
	caller = caller_of(ctx, what);
	call = tls_calls.lookup(&caller);
	/* A uretprobe has popped the return address. Goroutines' stacks can have been moved. */
	if (!call || (!(what & AW_CALL_GO) && call->stack + 8 != ctx->sp))
		return 0;
	session = session_of(call->connection);
	if (!session || !open_account(&a, AW_P_TLS, tag->cgroup)) {
		tls_calls.delete(&caller);
		return 0;
	}
	if (call->socket && call->socket != session->cookie) {
		session->cookie = call->socket;
		tied = 1;
	}
	call->session = session->id;
	call->cookie = session->cookie;
	if ((what & AW_CALL_KIND) != AW_CALL_IO)
		n = bytes_of_call(ctx, call, what);
	/* Another thread can read the answer before the call that asked has returned: who reads this puts it in order. */
	if ((what & AW_CALL_KIND) == AW_CALL_WRITE && session->writing == call->entered) {
		overtaken = session->overtaken == call->entered;
		session->writing = 0;
	} else if (direction == AW_IN && n) {
		call->writing = session->writing;
		if (session->writing)
			session->overtaken = session->writing;
	}
	if (!n) {
		call->position = session->position[direction & 1];
		if (tied || overtaken)
			tell_tls(&a, call, direction, 0, 0);
		tls_calls.delete(&caller);
		return 0;
	}
	call->total = n;
	call->position = __sync_fetch_and_add(&session->position[direction & 1], n);
	if (verdict_of(session->id) & TLS_COUNTED) {
		count_tls(&a, session, call, direction);
		tls_calls.delete(&caller);
		return 0;
	}
	tls_continuation.call((void *)ctx, 0);
	lose_bytes(&a, AW_LOST_LIMIT, n);
	tell_tls(&a, call, direction, 0, n);
	tls_calls.delete(&caller);
	return 0;
}

/* One piece of n bytes in a reservation of size bytes; 0, or -1: no room. */
static inline __attribute__((always_inline)) int
put_plaintext(struct account *a, struct tls_call *call, u8 direction, u64 n, const u64 size)
{
	struct aw_tls *e;
	u64 captured = n;

	if (!has_room(a->cgroup, size, PATIENCE_PAYLOAD))
		return -1;
	e = ring.ringbuf_reserve(size);
	if (!e)
		return -1;
	fill_tls(e, a, call, direction);
	number(a, &e->h);
	e->offset = call->done;
	e->payload = n;
	KEEP_BOUND(captured);
	if (captured > size - sizeof(*e))
		captured = 0;
	if (captured &&
	    bpf_probe_read_user((void *)(e + 1), captured, (void *)(call->buffer + call->done))) {
		lose_bytes(a, AW_LOST_MEMORY, captured);
		captured = 0;
	}
	e->captured = captured;
	e->h.len = sizeof(*e) + captured;
	ring.ringbuf_submit(e, wake_flag(size));
	count_submitted(a);
	return 0;
}

/* The last piece, in the smallest reservation that holds it: a server's buffer of 8 KiB and a whole record have their own. */
static inline __attribute__((always_inline)) int put_last(struct account *a, struct tls_call *call,
							  u8 direction, u64 n)
{
	u64 need = sizeof(struct aw_tls) + n;

	if (need <= 192)
		return put_plaintext(a, call, direction, n, 192);
	if (need <= 384)
		return put_plaintext(a, call, direction, n, 384);
	if (need <= 1024)
		return put_plaintext(a, call, direction, n, 1024);
	if (need <= 4096)
		return put_plaintext(a, call, direction, n, 4096);
	if (need <= 8448)
		return put_plaintext(a, call, direction, n, 8448);
	if (need <= 16640)
		return put_plaintext(a, call, direction, n, 16640);
	return put_plaintext(a, call, direction, n, 65536);
}

/* Copies out what on_tls_return has found, calling itself while there is more. */
int on_tls_more(struct user_registers *ctx)
{
	u64 what = bpf_get_attach_cookie(ctx);
	struct tls_caller caller = caller_of(ctx, what);
	struct tls_call *call = tls_calls.lookup(&caller);
	struct tag *tag = watched();
	struct account a;
	u8 direction = (what & AW_CALL_KIND) == AW_CALL_READ ? AW_IN : AW_OUT;
	u64 n;
	int i;

	if (!call || !tag || !open_account(&a, AW_P_TLS, tag->cgroup))
		return 0;
	for (i = 0; i < TLS_STEPS; i++) {
		if (call->total - call->done <= TLS_PIECE)
			break;
		if (put_plaintext(&a, call, direction, TLS_PIECE, 65536))
			lose(&a, AW_LOST_RING, TLS_PIECE);
		call->done += TLS_PIECE;
	}
	n = call->total - call->done;
	if (n > TLS_PIECE) {
		tls_continuation.call((void *)ctx, 0);
		lose_bytes(&a, AW_LOST_LIMIT, n);
		tell_tls(&a, call, direction, 0, n);
	} else if (put_last(&a, call, direction, n)) {
		lose(&a, AW_LOST_RING, n);
	}
	tls_calls.delete(&caller);
	hold_back(&a);
	return 0;
}

/*
 * sched_process_exit(task, ...): the thread may be in a write call that will not return. What
 * that has sent is with the server; that it was all of the buffer is the likelier mistake.
 */
int on_exit_tls(struct bpf_raw_tracepoint_args *ctx)
{
	struct tag *tag = watched();
	struct tls_session *session;
	struct tls_call *call;
	struct account a;
	u64 n;

	if (!tag)
		return 0;
	call = tls_call_of(tag);
	if (!call || !call->socket || !call->buffer || !call->length ||
	    (call->what & AW_CALL_KIND) != AW_CALL_WRITE)
		return 0;
	session = session_of(call->connection);
	if (!session || !open_account(&a, AW_P_TLS, tag->cgroup))
		return 0;
	call->session = session->id;
	call->cookie = call->socket;
	call->total = call->length;
	call->position = __sync_fetch_and_add(&session->position[AW_OUT], call->length);
	n = call->total < TLS_PIECE ? call->total : TLS_PIECE;
	if (put_last(&a, call, AW_OUT, n))
		lose(&a, AW_LOST_RING, n);
	call->done = n;
	if (call->total > n) {
		lose_bytes(&a, AW_LOST_LIMIT, call->total - n);
		tell_tls(&a, call, AW_OUT, 0, call->total - n);
	}
	return 0;
}
