/* SPDX-License-Identifier: (MIT OR GPL-2.0-only) */
/*
 * One packet from a server that is followed: which part of it goes to the ring.
 */
#include "rows.h"

/* n bytes, one to four, of a header that is in two packets. */
static inline __attribute__((always_inline)) int load_head(struct __sk_buff *skb, u32 offset, u8 *b,
							   u64 n)
{
	KEEP_BOUND(n);
	if (n < 1 || n > 4)
		return -1;
	return bpf_skb_load_bytes(skb, offset, b, n);
}

static inline __attribute__((always_inline)) u64 word_of(u8 *b)
{
	return (u64)b[0] << 24 | (u64)b[1] << 16 | (u64)b[2] << 8 | b[3];
}

/* From a header's length to that of the whole message, 0 if there is none like that. */
static inline __attribute__((always_inline)) u64 message_bytes(u64 length)
{
	return length < 4 || length > MESSAGE_LIMIT ? 0 : length + 1;
}

/* A header at offset at of the payload: does it end a run, begin one or go on with it? */
static inline __attribute__((always_inline)) void meet(struct walk *w, u8 type, u64 at)
{
	if (w->kind && type == w->kind) {
		w->rows++;
		return;
	}
	if (w->inherited && !w->cut) {
		w->cut = 1;
		w->cut_at = at;
		w->cut_rows = w->rows;
	}
	w->kind = 0;
	if (type == 'D' || type == 'd') {
		w->kind = type;
		w->run_at = at;
		w->rows = 1;
	}
}

/* The header that began in the packet before. 0, or -1: this is not what was expected. */
static inline __attribute__((always_inline)) int
finish_head(struct __sk_buff *skb, struct packet *p, struct flow *f, struct walk *w)
{
	u64 had = f->partial_len;
	u64 head, len;
	u8 b[4] = {};
	u8 type;

	if (!had)
		return 0;
	KEEP_BOUND(had);
	if (had > 4 || p->payload < MESSAGE_HEADER - had ||
	    load_head(skb, p->offset, b, MESSAGE_HEADER - had))
		return -1;
	head = word_of(f->partial) >> 8 * (4 - had) << 8 * (MESSAGE_HEADER - had) |
	       word_of(b) >> 8 * (had - 1);
	type = head >> 32;
	len = message_bytes((u32)head);
	if (!len)
		return -1;
	w->at = len - had;
	if (w->kind && type == w->kind) {
		w->rows++;
		w->had = had;
	} else {
		if (w->inherited) {
			w->cut = 1;
			w->cut_rows = w->rows;
			w->cut_partial = had;
		}
		w->kind = 0; /* a run does not begin with half a header */
	}
	return 0;
}

/* Walk through up to ROWS_STEPS headers. 1: there are more; -1: this is none. */
static inline __attribute__((always_inline)) int walk_on(struct __sk_buff *skb, struct packet *p,
							 struct walk *w)
{
	u64 at = w->at;
	int i;

	for (i = 0; i < ROWS_STEPS; i++) {
		u8 head[MESSAGE_HEADER];
		u64 len;

		if (at + MESSAGE_HEADER > p->payload) {
			w->at = at;
			return 0;
		}
		if (bpf_skb_load_bytes(skb, p->offset + at, head, MESSAGE_HEADER))
			return -1;
		len = message_bytes(word_of(head + 1));
		if (!len)
			return -1;
		meet(w, head[0], at);
		at += len;
	}
	w->at = at;
	return 1;
}

/* Length of the message of this type at this place of the payload, 0 if there is none. */
static inline __attribute__((always_inline)) u64 row_at(struct __sk_buff *skb, struct packet *p,
							u64 at, u8 type)
{
	u8 head[MESSAGE_HEADER];

	if (at + MESSAGE_HEADER > p->payload ||
	    bpf_skb_load_bytes(skb, p->offset + at, head, MESSAGE_HEADER) || head[0] != type)
		return 0;
	return message_bytes(word_of(head + 1));
}

/* Find a row that others follow. 0: w is there; -1: there is none. */
static inline __attribute__((always_inline)) int search(struct __sk_buff *skb, struct packet *p,
							struct flow *f)
{
	struct walk *w = &f->walk;
	u8 type = f->message ?: 'D';
	u64 row = 0, at;
	int i;

	f->searches--;
	__builtin_memset(w, 0, sizeof(*w));
	for (i = 0; i < SEARCH_BYTES; i++) {
		row = row_at(skb, p, i, type);
		if (row)
			break;
	}
	at = i;
	for (i = 0; i < SEARCH_ROWS; i++) {
		if (!row)
			return -1;
		at += row;
		row = row_at(skb, p, at, type);
	}
	w->at = at; /* the rows that were looked at are copied */
	f->from = p->seq;
	f->kind = 0;
	f->partial_len = 0;
	return 0;
}

/* Begin with what the packet before left. 0, or -1: it is not the next one. */
static inline __attribute__((always_inline)) int begin_walk(struct __sk_buff *skb, struct packet *p,
							    struct flow *f)
{
	struct walk *w = &f->walk;

	__builtin_memset(w, 0, sizeof(*w));
	if (p->seq != f->next || !p->payload || p->tcp_flags & (TCP_FIN | TCP_SYN | TCP_RST))
		return -1;
	if (f->kind && !f->length && !is_fresh(f, p))
		return -1;
	w->at = f->rest;
	w->kind = f->kind;
	w->inherited = f->kind != 0;
	w->rows = f->rows;
	return finish_head(skb, p, f, w);
}

/*
 * A packet that needs no walk. An old one repeats what was told. One that lies
 * within the body of a row belongs to the run, even if another one before it is still
 * on its way, which is then an old one.
 */
static inline __attribute__((always_inline)) int is_body(struct packet *p, struct flow *f)
{
	s64 ahead = (s32)(p->seq - f->next);
	s64 payload = p->payload;

	if (!f->following || p->tcp_flags & (TCP_FIN | TCP_SYN | TCP_RST))
		return 0;
	if (ahead < 0)
		return ahead + payload <= 0 && (s32)(p->seq - f->from) >= 0;
	if (!f->kind || f->partial_len || ahead + payload > f->rest)
		return 0;
	/* What was told of it already waits at the reader for the run that it is in, if the run has bytes before it. */
	if (!f->length && f->next != f->top)
		return 0;
	reach_top(f, p->seq + payload);
	f->next += ahead + payload;
	f->length += ahead + payload;
	f->rest -= ahead + payload;
	return 1;
}

/*
 * The walk is over: tell the run that ended, copy what is no run, keep the run that
 * goes on. Returns what the packet's program returns.
 */
static inline __attribute__((always_inline)) int finish_walk(struct __sk_buff *skb,
							     struct packet *p, struct flow *f,
							     struct account *a, struct owner *o,
							     u64 cookie, int broken)
{
	struct walk *w = &f->walk;
	struct run r = run_of(f);
	u64 payload = p->payload, from = 0, to = payload;
	u32 offset = p->offset;
	u64 next = p->seq + (u32)payload;
	u64 partial_len = 0;
	u8 kind = 0;
	int whole = 0, fresh = is_fresh(f, p);

	if (!broken) {
		if (w->at < payload)
			partial_len = payload - w->at;
		kind = w->kind;
		whole = w->inherited && !w->cut;
		if (!whole && (!fresh || payload - w->run_at < RUN_FROM))
			kind = 0;
		if (w->cut) {
			r.rows = w->cut_rows;
			r.rest = 0;
			r.partial_len = w->cut_partial;
			if (!w->cut_partial) {
				r.length += w->cut_at;
				from = w->cut_at;
			}
		}
		if (w->had && !whole)
			r.length += w->had;
		if (kind && !whole)
			to = w->run_at;
	}
	if (f->kind)
		f->message = f->kind;
	if (!whole) {
		if (f->kind && put_run(a, o, cookie, &r, f->partial)) {
			if (holds(a->cgroup))
				return 0;
			lose(a, AW_LOST_RING, r.length);
		}
		f->kind = 0;
		if (to > from) {
			p->seq += from;
			p->offset += from;
			p->payload = to - from;
			if (to < payload)
				p->tcp_flags &= ~TCP_FIN;
			if (!has_room(a->cgroup, sizeof(struct aw_wire) + p->payload,
				      PATIENCE_PAYLOAD) ||
			    put_packet(skb, p, o, a, cookie, AW_IN)) {
				f->following = 0;
				return without_room(a, p->payload);
			}
		}
	}
	reach_top(f, next);
	f->next = next;
	if (broken) {
		f->following = fresh && is_ready(skb, p);
		f->from = next;
		if (f->following)
			f->searches = SEARCHES;
		f->rest = 0;
		f->partial_len = 0;
		return 1;
	}
	f->following = 1;
	f->rest = w->at > payload ? w->at - payload : 0;
	f->partial_len = partial_len;
	if (partial_len && load_head(skb, offset + w->at, f->partial, partial_len)) {
		f->following = 0;
		return 1;
	}
	if (whole) {
		f->length += payload - partial_len + w->had;
		f->rows = w->rows;
	} else if (kind) {
		f->kind = kind;
		f->start = (u32)next - (u32)(payload - w->run_at);
		f->length = payload - w->run_at - partial_len;
		f->lead = 0;
		f->rows = w->rows;
		f->told_at[AW_IN] = bpf_ktime_get_boot_ns();
	}
	tell_long_run(f, a, o, cookie);
	return 1;
}

/* Called by on_ingress for a packet that is not followed: if a row is found in it, on_rows goes on from there. */
int on_search(struct __sk_buff *skb)
{
	u64 cookie = socket_cookie(skb);
	struct flow *f = flows.lookup(&cookie);
	struct packet p = {};

	if (f && !parse(skb, &p) && take_flow_patiently(f)) {
		f->walker = search(skb, &p, f) ? 0 : (u64)skb;
		if (!f->walker)
			leave_flow(f);
	}
	followers.call(skb, 0);
	return 1;
}

/* Called by on_ingress, and by itself while a packet has more messages. */
int on_rows(struct __sk_buff *skb)
{
	u64 cookie = socket_cookie(skb);
	struct flow *f = flows.lookup(&cookie);
	struct owner *known = owners.lookup(&cookie);
	struct owner owner = {};
	struct packet p = {};
	struct account a;
	int result, state = 0, whole = 0;

	if (known)
		owner = *known;
	else
		owner.cgroup = bpf_skb_cgroup_id(skb);
	if (!open_account(&a, AW_P_INGRESS, owner.cgroup))
		return 1;
	if (parse(skb, &p)) {
		lose(&a, AW_LOST_MEMORY, skb->len);
		return 1;
	}
	p.copied = 1;
	if (!f) {
		whole = 1; /* the recorder has just forgotten it */
	} else if (f->walker != (u64)skb || !f->taken) {
		if (!take_flow_patiently(f)) {
			whole = 1;
			reach_top(f, p.seq + p.payload);
		} else if (is_body(&p, f)) {
			tell_long_run(f, &a, &owner, cookie);
			leave_flow(f);
			return 1;
		} else if (f->following && (s32)(p.seq - f->from) < 0 &&
			   (s32)(p.seq + (u32)p.payload - f->next) <= 0) {
			/* It came late, and following has begun behind it, or in it. */
			if ((s32)(p.seq + (u32)p.payload - f->from) > 0)
				p.payload = f->from - p.seq;
			whole = 1;
			leave_flow(f);
		} else {
			f->walker = (u64)skb;
			state = f->following ? begin_walk(skb, &p, f) : -1;
		}
	}
	if (whole || !f) {
		if (put_packet(skb, &p, &owner, &a, cookie, AW_IN))
			return without_room(&a, p.payload);
		return 1;
	}
	if (!state)
		state = walk_on(skb, &p, &f->walk);
	if (state > 0) {
		followers.call(skb, 0);
		state = -1; /* too many messages for one packet */
	}
	result = finish_walk(skb, &p, f, &a, &owner, cookie, state < 0);
	f->walker = 0;
	leave_flow(f);
	if (f->wanted && take_flow(f)) {
		f->wanted = 0;
		tell_run(f, &a, &owner, cookie);
		leave_flow(f);
	}
	return result;
}
