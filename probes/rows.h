/* SPDX-License-Identifier: (MIT OR GPL-2.0-only) */
/*
 * The rows of a result, stepped over: what a PostgreSQL server answers is followed from
 * message to message, and a run of DataRow or CopyData messages is told as one
 * AW_ROWS event instead of its bytes.
 *
 * The kernel proposes and the decoder disposes. Following begins behind a packet that
 * ends as a ReadyForQuery does, which a row can be made to look like; so a run is
 * believed only where the decoder, which has read every byte before it, is at the same
 * place of the same kind of message. Elsewhere it is a gap, and declared. What the
 * client sends is never stepped over.
 *
 * Packets can come out of order, when a server moves to another CPU. Then what they hold
 * cannot be followed, and the rows behind them are searched for: some messages of the
 * last run's type, each where the one before it ends.
 *
 * A run is told when it ends, when the client speaks (its acknowledgement proves to
 * the reader that there were bytes), and after RUN_BYTES or RUN_NS. Packets of a
 * connection can arrive on two CPUs at once: one follows, the other one's packet
 * waits for a moment, or goes to the ring whole and ends the following.
 */
#ifndef AGENTWATCH_ROWS_H
#define AGENTWATCH_ROWS_H

#include "packet.h"

#define MESSAGE_HEADER 5
#define READY_BYTES    6
/* What a server takes: PQ_LARGE_MESSAGE_LIMIT. */
#define MESSAGE_LIMIT 0x40000003ULL
/* Packets of one result in which a row is searched for, and how far; a row is one that so many others follow. */
#define SEARCHES     64
#define SEARCH_BYTES 512
#define SEARCH_FROM  2048
#define SEARCH_ROWS  4
/* A shorter run at the end of a packet is copied. */
#define RUN_FROM 512
/* A run is told of after so many bytes or this much time, though it goes on. */
#define RUN_BYTES (64U << 20)
#define RUN_NS	  1000000000ULL
/* Messages in one run of on_rows. The kernel allows 33: 8448 messages are a packet of 64 KiB with 7 bytes each. */
#define ROWS_STEPS 256

#define PROTOCOL_3 3

static inline __attribute__((always_inline)) int take_flow(struct flow *f)
{
	return __sync_val_compare_and_swap(&f->taken, 0ULL, 1ULL) == 0;
}

/* The same, for a packet that comes while the one before it is walked through on another CPU. */
static inline __attribute__((always_inline)) int take_flow_patiently(struct flow *f)
{
	int i;

	for (i = 0; i < 512; i++)
		if (take_flow(f))
			return 1;
	return 0;
}

static inline __attribute__((always_inline)) void leave_flow(struct flow *f)
{
	__sync_val_compare_and_swap(&f->taken, 1ULL, 0ULL);
}

/* Nothing at or behind this packet was told: what is stepped over from here on is not known to the reader. */
static inline __attribute__((always_inline)) int is_fresh(struct flow *f, struct packet *p)
{
	return !f->met || (s32)(p->seq - f->top) >= 0;
}

static inline __attribute__((always_inline)) void reach_top(struct flow *f, u32 end)
{
	if (f->met && (s32)(end - f->top) <= 0)
		return;
	f->top = end;
	f->met = 1;
}

/* A run as it is told. */
struct run {
	u32 start;
	u32 length;
	u32 lead;
	u32 rest;
	u32 rows;
	u8 kind;
	u8 partial_len;
};

static inline __attribute__((always_inline)) struct run run_of(struct flow *f)
{
	struct run r = { .start = f->start,
			 .length = f->length,
			 .lead = f->lead,
			 .rest = f->rest,
			 .rows = f->rows,
			 .kind = f->kind,
			 .partial_len = f->partial_len };

	return r;
}

/* 0, or -1: no room. */
static inline __attribute__((always_inline)) int put_run(struct account *a, struct owner *o,
							 u64 cookie, struct run *r, u8 *partial)
{
	struct aw_rows *e;

	if (!r->length && !r->partial_len)
		return 0;
	e = ring.ringbuf_reserve(sizeof(*e));
	if (!e)
		return -1;
	__builtin_memset(e, 0, sizeof(*e));
	e->h.kind = AW_ROWS;
	e->h.flags = AW_F_SUPPRESSED | (o->tgid ? 0 : AW_F_UNATTRIBUTED);
	e->h.boottime = bpf_ktime_get_boot_ns();
	e->h.cgroup = o->cgroup;
	e->h.tgid = o->tgid;
	e->h.tid = o->tid;
	e->h.len = sizeof(*e);
	e->cookie = cookie;
	e->seq = r->start;
	e->length = r->length;
	e->lead = r->lead;
	e->rest = r->rest;
	e->rows = r->rows;
	e->message = r->kind;
	e->partial_len = r->partial_len;
	__builtin_memcpy(e->partial, partial, sizeof(e->partial));
	number(a, &e->h);
	ring.ringbuf_submit(e, wake_flag(sizeof(*e)));
	count_submitted(a);
	__sync_fetch_and_add(&a->counters->counted_bytes, r->length);
	return 0;
}

/* Tell what there is of a run, which goes on. The flow is taken. */
static inline __attribute__((always_inline)) void tell_run(struct flow *f, struct account *a,
							   struct owner *o, u64 cookie)
{
	struct run r = run_of(f);

	if (!f->kind)
		return;
	if (put_run(a, o, cookie, &r, f->partial)) {
		if (holds(a->cgroup))
			return; /* it is tried again */
		lose(a, AW_LOST_RING, f->length);
	}
	f->start = f->next;
	f->length = 0;
	f->rows = 0;
	f->lead = f->rest;
	f->told_at[AW_IN] = bpf_ktime_get_boot_ns();
	if (f->partial_len)
		f->kind = 0; /* its next header is in pieces, and the reader has the first one */
}

static inline __attribute__((always_inline)) void tell_long_run(struct flow *f, struct account *a,
								struct owner *o, u64 cookie)
{
	if (f->kind && !f->partial_len &&
	    (f->length >= RUN_BYTES || bpf_ktime_get_boot_ns() - f->told_at[AW_IN] > RUN_NS))
		tell_run(f, a, o, cookie);
}

/* The client speaks: what it has read must be known before what it says. */
static inline __attribute__((always_inline)) void speak(struct flow *f, u64 cookie, struct owner *o)
{
	struct account a;

	if (!f->kind || !open_account(&a, AW_P_INGRESS, o->cgroup))
		return;
	f->wanted = 1;
	if (!take_flow(f))
		return; /* who has it looks again when it leaves */
	f->wanted = 0;
	tell_run(f, &a, o, cookie);
	leave_flow(f);
}

/* A client that begins as PostgreSQL's do is one whose answers are worth following. */
static inline __attribute__((always_inline)) void recognise(struct __sk_buff *skb, struct packet *p,
							    u64 cookie)
{
	struct flow fresh = { .mode = FLOW_ROWS };
	u8 b[8];

	if (p->payload < 9 || p->payload > 10000 || bpf_skb_load_bytes(skb, p->offset, b, 8))
		return;
	if (b[0] || b[1] || (b[2] << 8 | b[3]) != p->payload || b[4] || b[5] != PROTOCOL_3)
		return;
	flows.insert(&cookie, &fresh);
}

static inline __attribute__((always_inline)) int is_ready(struct __sk_buff *skb, struct packet *p)
{
	u8 b[READY_BYTES];

	if (p->payload < READY_BYTES ||
	    bpf_skb_load_bytes(skb, p->offset + p->payload - READY_BYTES, b, READY_BYTES))
		return 0;
	return b[0] == 'Z' && !b[1] && !b[2] && !b[3] && b[4] == 5 &&
	       (b[5] == 'I' || b[5] == 'T' || b[5] == 'E');
}

/* A packet of a result that was followed once, and is long enough to find a row in. */
static inline __attribute__((always_inline)) int may_search(struct packet *p, struct flow *f)
{
	return !f->following && f->searches && p->payload >= SEARCH_FROM && is_fresh(f, p) &&
	       !(p->tcp_flags & (TCP_FIN | TCP_SYN | TCP_RST));
}

/* Most answers are one packet that ends ready: no need to walk through it. */
static inline __attribute__((always_inline)) int ends_ready(struct __sk_buff *skb, struct packet *p,
							    struct flow *f)
{
	return !f->kind && f->next == p->seq && is_ready(skb, p);
}

/* After a packet that was copied whole: does a message begin behind it? */
static inline __attribute__((always_inline)) void note_boundary(struct __sk_buff *skb,
								struct packet *p, struct flow *f)
{
	if (!take_flow(f))
		return;
	if (!p->payload || !is_fresh(f, p)) {
		reach_top(f, p->seq + p->payload);
		leave_flow(f); /* it repeats something, or came late */
		return;
	}
	reach_top(f, p->seq + p->payload);
	f->following = is_ready(skb, p);
	if (f->following)
		f->searches = SEARCHES;
	f->next = p->seq + p->payload;
	f->from = f->next;
	f->rest = 0;
	f->partial_len = 0;
	f->kind = 0;
	leave_flow(f);
}

#endif
