/* SPDX-License-Identifier: (MIT OR GPL-2.0-only) */
/*
 * Every IP packet of the watched cgroups, both ways, after the kernel has
 * copied its payload: no second thread can change it, and io_uring, sendfile and
 * splice leave through here as everything else does.
 *
 * What nobody reads is not copied (struct flow): a connection that no decoder
 * knows is counted, the rows of a result are followed (rows.h).
 */
#include "rows.h"

/* A counted connection is told of again after so many bytes, or this much time. */
#define COUNTED_BYTES (8ULL << 20)
#define COUNTED_NS    1000000000ULL

/*
 * Payload that is only counted. The sequence number of the next packet that is told
 * of says exactly how much went by, so that packet needs no bytes, and one that
 * finds no room is made up for by the one after it.
 */
static inline __attribute__((always_inline)) int count_packet(struct flow *f, struct packet *p,
							      struct account *a, u8 direction)
{
	u64 now = bpf_ktime_get_boot_ns();
	u64 *untold = &f->untold[direction & 1];

	__sync_fetch_and_add(&a->counters->counted_bytes, p->payload);
	__sync_fetch_and_add(untold, p->payload);
	if (*untold < COUNTED_BYTES && now - f->told_at[direction & 1] < COUNTED_NS)
		return 0;
	*untold = 0;
	f->told_at[direction & 1] = now;
	return 1;
}

static inline __attribute__((always_inline)) int on_packet(struct __sk_buff *skb, u8 direction)
{
	struct packet p = {};
	struct owner owner = {};
	struct owner *known;
	struct flow *f = NULL;
	struct account a;
	u64 cookie = socket_cookie(skb);

	known = owners.lookup(&cookie);
	if (known)
		owner = *known;
	else
		owner.cgroup = bpf_skb_cgroup_id(skb);
	if (!open_account(&a, direction == AW_OUT ? AW_P_EGRESS : AW_P_INGRESS, owner.cgroup))
		return 1;
	if (parse(skb, &p)) {
		lose(&a, AW_LOST_MEMORY, skb->len);
		return 1;
	}
	/* A bare acknowledgement tells nothing that the next packet does not. */
	if (p.protocol == PROTOCOL_TCP && !p.payload &&
	    !(p.tcp_flags & (TCP_FIN | TCP_SYN | TCP_RST)))
		return 1;
	p.copied = p.protocol == PROTOCOL_TCP && !p.fragment;
	if (p.copied)
		f = flows.lookup(&cookie);
	if (f && f->mode == FLOW_TLS && direction == AW_OUT)
		f = NULL;
	if (f && (f->mode == FLOW_COUNT || f->mode == FLOW_TLS)) {
		p.copied = 0;
		if (p.payload && !(p.tcp_flags & (TCP_FIN | TCP_SYN | TCP_RST)) &&
		    !count_packet(f, &p, &a, direction))
			return 1;
		f = NULL;
	}
	if (direction == AW_OUT) {
		if (p.payload)
			refresh_owner(&a, cookie, &owner);
		if (f)
			speak(f, cookie, &owner);
		else if (p.copied && p.payload)
			recognise(skb, &p, cookie);
	} else if (f && f->following && !ends_ready(skb, &p, f)) {
		followers.call(skb, 0);
	} else if (f && may_search(&p, f)) {
		searchers.call(skb, 0);
	}
	if (!has_room(a.cgroup, sizeof(struct aw_wire) + (p.copied ? p.payload : 0),
		      p.payload ? PATIENCE_PAYLOAD : PATIENCE_CONTROL) ||
	    put_packet(skb, &p, &owner, &a, cookie, direction))
		return without_room(&a, p.payload);
	if (direction == AW_IN && f)
		note_boundary(skb, &p, f);
	return 1;
}

int on_egress(struct __sk_buff *skb)
{
	return on_packet(skb, AW_OUT);
}

int on_ingress(struct __sk_buff *skb)
{
	return on_packet(skb, AW_IN);
}
