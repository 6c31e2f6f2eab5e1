/* SPDX-License-Identifier: (MIT OR GPL-2.0-only) */
/*
 * An IP packet of a watched cgroup: where its payload is, and that payload, or a part
 * of it, into the ring.
 *
 * The packet programs run with preemption and soft interrupts possible, so they
 * have no per-CPU scratch: an event is reserved in the ring itself, in the
 * smallest of seven sizes that holds it (a reservation's size must be a constant).
 */
#ifndef AGENTWATCH_PACKET_H
#define AGENTWATCH_PACKET_H

#include "sock.h"

/* A packet is at most 64 KiB, and 512 KiB with BIG TCP. */
#define LARGE_PIECES	  8
#define LARGE_BYTES	  (65536ULL - sizeof(struct aw_wire))
#define EXTENSION_HEADERS 6

#define TCP_FIN 1
#define TCP_SYN 2
#define TCP_RST 4

#define ETHERTYPE_IP   0x0800
#define ETHERTYPE_IPV6 0x86DD

struct packet {
	u64 payload; /* bytes */
	u32 offset; /* of the payload in the packet */
	u32 seq;
	u32 ack;
	u8 source[16];
	u8 target[16];
	u16 source_port;
	u16 target_port;
	u8 family;
	u8 protocol;
	u8 tcp_flags;
	u8 fragment; /* not the first one: no ports */
	u8 copied; /* its payload goes to the ring */
};

static inline __attribute__((always_inline)) int parse_ip4(struct __sk_buff *skb, struct packet *p)
{
	u8 h[20];

	if (bpf_skb_load_bytes(skb, 0, h, sizeof(h)))
		return -1;
	p->family = FAMILY_INET;
	p->protocol = h[9];
	p->offset = (h[0] & 15) * 4;
	p->fragment = (h[6] & 0x1f) || h[7];
	__builtin_memcpy(p->source, h + 12, 4);
	__builtin_memcpy(p->target, h + 16, 4);
	return 0;
}

static inline __attribute__((always_inline)) int parse_ip6(struct __sk_buff *skb, struct packet *p)
{
	u8 h[40];
	u8 next;
	int i;

	if (bpf_skb_load_bytes(skb, 0, h, sizeof(h)))
		return -1;
	p->family = FAMILY_INET6;
	__builtin_memcpy(p->source, h + 8, 16);
	__builtin_memcpy(p->target, h + 24, 16);
	p->offset = sizeof(h);
	next = h[6];
	for (i = 0; i < EXTENSION_HEADERS; i++) {
		u8 e[8];

		/* hop-by-hop, routing, fragment, destination options */
		if (next != 0 && next != 43 && next != 44 && next != 60)
			break;
		if (bpf_skb_load_bytes(skb, p->offset, e, sizeof(e)))
			return -1;
		if (next == 44) {
			p->fragment = e[2] || e[3] & 0xf8;
			p->offset += 8;
		} else {
			p->offset += (e[1] + 1) * 8;
		}
		next = e[0];
	}
	p->protocol = next;
	return 0;
}

static inline __attribute__((always_inline)) int parse_transport(struct __sk_buff *skb,
								 struct packet *p)
{
	if (p->protocol == PROTOCOL_TCP && !p->fragment) {
		u8 h[20];
		u32 header;

		if (bpf_skb_load_bytes(skb, p->offset, h, sizeof(h)))
			return -1;
		p->source_port = h[0] << 8 | h[1];
		p->target_port = h[2] << 8 | h[3];
		p->seq = (u32)h[4] << 24 | h[5] << 16 | h[6] << 8 | h[7];
		p->ack = (u32)h[8] << 24 | h[9] << 16 | h[10] << 8 | h[11];
		p->tcp_flags = h[13];
		header = (h[12] >> 4) * 4;
		p->offset += header;
	} else if (p->protocol == PROTOCOL_UDP && !p->fragment) {
		u8 h[8];

		if (bpf_skb_load_bytes(skb, p->offset, h, sizeof(h)))
			return -1;
		p->source_port = h[0] << 8 | h[1];
		p->target_port = h[2] << 8 | h[3];
		p->offset += 8;
	}
	p->payload = skb->len > p->offset ? skb->len - p->offset : 0;
	return 0;
}

static inline __attribute__((always_inline)) int parse(struct __sk_buff *skb, struct packet *p)
{
	u16 protocol = bpf_ntohs((u16)skb->protocol);

	if (protocol == ETHERTYPE_IP   ? parse_ip4(skb, p) :
	    protocol == ETHERTYPE_IPV6 ? parse_ip6(skb, p) :
					 -1)
		return -1;
	return parse_transport(skb, p);
}

static inline __attribute__((always_inline)) void
fill_wire(struct aw_wire *e, struct packet *p, struct owner *o, u64 cookie, u8 direction)
{
	__builtin_memset(e, 0, sizeof(*e));
	e->h.kind = AW_WIRE;
	e->h.flags = o->tgid ? 0 : AW_F_UNATTRIBUTED;
	e->h.boottime = bpf_ktime_get_boot_ns();
	e->h.cgroup = o->cgroup;
	e->h.tgid = o->tgid;
	e->h.tid = o->tid;
	e->cookie = cookie;
	e->ack = p->ack;
	e->family = p->family;
	e->protocol = p->protocol;
	e->tcp_flags = p->tcp_flags;
	e->direction = direction;
	__builtin_memcpy(e->remote, direction == AW_OUT ? p->target : p->source, 16);
	__builtin_memcpy(e->local, direction == AW_OUT ? p->source : p->target, 16);
	e->remote_port = direction == AW_OUT ? p->target_port : p->source_port;
	e->local_port = direction == AW_OUT ? p->source_port : p->target_port;
}

/* One piece of n payload bytes that begins at done, in a reservation of size bytes; 0, or -1: no room. */
static inline __attribute__((always_inline)) int put_piece(struct __sk_buff *skb, struct packet *p,
							   struct owner *o, struct account *a,
							   u64 cookie, u8 direction, u64 done,
							   u64 n, const u64 size)
{
	struct aw_wire *e = ring.ringbuf_reserve(size);

	if (!e)
		return -1;
	fill_wire(e, p, o, cookie, direction);
	number(a, &e->h);
	e->seq = p->seq + done;
	e->payload = n;
	/* SYN counts before the first byte, FIN after the last: only the piece that has it says so. */
	if (done)
		e->tcp_flags &= ~TCP_SYN;
	if (done + n < p->payload)
		e->tcp_flags &= ~TCP_FIN;
	if (!p->copied) {
		e->h.flags |= n ? AW_F_SUPPRESSED : 0;
		n = 0;
	}
	KEEP_BOUND(n);
	if (n > size - sizeof(*e))
		n = 0;
	if (n && bpf_skb_load_bytes(skb, p->offset + done, (void *)(e + 1), n)) {
		lose_bytes(a, AW_LOST_MEMORY, n);
		n = 0;
	}
	e->captured = n;
	e->h.len = sizeof(*e) + n;
	ring.ringbuf_submit(e, wake_flag(size));
	count_submitted(a);
	return 0;
}

/* Returns how many bytes of payload found no room. A piece that did is told again with the packet, if that is held. */
static inline __attribute__((always_inline)) int put_packet(struct __sk_buff *skb, struct packet *p,
							    struct owner *o, struct account *a,
							    u64 cookie, u8 direction)
{
	u64 done = 0, n, need;
	int i;

	for (i = 0; i < LARGE_PIECES && p->payload - done > LARGE_BYTES; i++) {
		if (put_piece(skb, p, o, a, cookie, direction, done, LARGE_BYTES, 65536))
			return -1;
		done += LARGE_BYTES;
	}
	n = p->payload - done;
	if (n > LARGE_BYTES) {
		lose_bytes(a, AW_LOST_LIMIT, n - LARGE_BYTES);
		n = LARGE_BYTES;
	}
	need = sizeof(struct aw_wire) + (p->copied ? n : 0);
	if (need <= 104)
		return put_piece(skb, p, o, a, cookie, direction, done, n, 104);
	if (need <= 192)
		return put_piece(skb, p, o, a, cookie, direction, done, n, 192);
	if (need <= 384)
		return put_piece(skb, p, o, a, cookie, direction, done, n, 384);
	if (need <= 1024)
		return put_piece(skb, p, o, a, cookie, direction, done, n, 1024);
	if (need <= 4096)
		return put_piece(skb, p, o, a, cookie, direction, done, n, 4096);
	if (need <= 16384)
		return put_piece(skb, p, o, a, cookie, direction, done, n, 16384);
	return put_piece(skb, p, o, a, cookie, direction, done, n, 65536);
}

/* What becomes of a packet that cannot be recorded: 0 refuses it, and TCP sends it again later. */
static inline __attribute__((always_inline)) int without_room(struct account *a, u64 payload)
{
	if (holds(a->cgroup)) {
		__sync_fetch_and_add(&a->counters->held, 1);
		return 0;
	}
	lose(a, AW_LOST_RING, payload);
	return 1;
}

#endif
