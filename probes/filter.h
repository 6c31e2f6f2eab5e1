/* SPDX-License-Identifier: (MIT OR GPL-2.0-only) */
/*
 * What every program uses: reading kernel memory by BTF offset, the question
 * "is this task watched", counting, and handing an event to the ring.
 */
#ifndef AGENTWATCH_FILTER_H
#define AGENTWATCH_FILTER_H

#include "maps.h"

/* The loader defines OFF_struct__member for each OFF() it finds in these files, from the running kernel's BTF. */
#define OFF(type, member) OFF_##type##__##member
#define HAS(type, member) HAS_##type##__##member

/*
 * Lengths and offsets are u64 throughout: a u32 makes the compiler shift it up
 * and down before use, and the verifier forgets the bound that was just checked.
 * This keeps the compiler from moving the check away from the use.
 */
#define KEEP_BOUND(x) asm volatile("" : "+r"(x))

/* BCC's own declaration returns 32 bits of the 64. */
static u64 (*socket_cookie)(void *ctx) = (void *)BPF_FUNC_get_socket_cookie;

/* Read a member of a kernel struct into dst; 0 or -errno. */
#define KREAD(dst, base, offset) \
	bpf_probe_read_kernel(&(dst), sizeof(dst), (void *)(base) + (offset))

#define BPF_RB_NO_WAKEUP_FLAG	 1
#define BPF_RB_FORCE_WAKEUP_FLAG 2

/* How many times of what is free a cgroup may have in the ring. */
#define PATIENCE_PAYLOAD 4
#define PATIENCE_CONTROL 16
#define FAIR_FROM	 (RING_BYTES / 8)

#define SIGSTOP_NR 19

#define EISCONN_NR     106
#define EALREADY_NR    114
#define EINPROGRESS_NR 115

#define FAMILY_UNIX  1
#define FAMILY_INET  2
#define FAMILY_INET6 10

#define PROTOCOL_TCP 6
#define PROTOCOL_UDP 17

/* The tag of the current process, NULL when it is not watched: the one lookup that everything else pays. */
static inline __attribute__((always_inline)) struct tag *watched(void)
{
	u32 tgid = bpf_get_current_pid_tgid() >> 32;

	return tags.lookup(&tgid);
}

/* The id of a cgroup2 cgroup if it lies under the watch root (or is it), else 0. */
static inline __attribute__((always_inline)) u64 watched_cgroup(void *cgroup)
{
	u64 id = 0;
	void *kn = NULL;
	void *root = NULL;
	s32 level = 0;
	s32 hierarchy = -1;

	KREAD(level, cgroup, OFF(cgroup, level));
	if (level < WATCH_LEVEL)
		return 0;
	/* Ids of the v1 hierarchies of a hybrid mount can be equal to ours; hierarchy 0 is cgroup2. */
	KREAD(root, cgroup, OFF(cgroup, root));
	KREAD(hierarchy, root, OFF(cgroup_root, hierarchy_id));
	if (hierarchy != 0)
		return 0;
#if HAS(cgroup, ancestors)
	/* since 7f203bc89eb6 ("cgroup: Replace cgroup->ancestor_ids[] with ->ancestors[]") */
	void *ancestor = NULL;

	KREAD(ancestor, cgroup, OFF(cgroup, ancestors) + 8 * WATCH_LEVEL);
	KREAD(kn, ancestor, OFF(cgroup, kn));
	KREAD(id, kn, OFF(kernfs_node, id));
#else
	KREAD(id, cgroup, OFF(cgroup, ancestor_ids) + 8 * WATCH_LEVEL);
#endif
	if (id != WATCH_CGROUP)
		return 0;
	KREAD(kn, cgroup, OFF(cgroup, kn));
	KREAD(id, kn, OFF(kernfs_node, id));
	return id;
}

static inline __attribute__((always_inline)) u64 watched_cgroup_of_task(void *task)
{
	void *css_set = NULL;
	void *cgroup = NULL;

	KREAD(css_set, task, OFF(task_struct, cgroups));
	KREAD(cgroup, css_set, OFF(css_set, dfl_cgrp));
	return watched_cgroup(cgroup);
}

/* Where a program writes down what becomes of an event: made once in each run. */
struct account {
	struct aw_counters *counters; /* of this program on this CPU */
	u64 cgroup; /* whose event it is; 0: not known */
	u32 program;
};

static inline __attribute__((always_inline)) int open_account(struct account *a, u32 program,
							      u64 cgroup)
{
	a->program = program;
	a->cgroup = cgroup;
	a->counters = counters.lookup(&program);
	return a->counters != NULL;
}

/* Whose loss it is: the counters do not know. A full map costs that, not the count. */
static inline __attribute__((always_inline)) void blame(struct account *a, u32 cause, u64 events,
							u64 bytes)
{
	struct aw_loss_key key = { .cgroup = a->cgroup, .program = a->program, .cause = cause };
	u64 now = bpf_ktime_get_boot_ns();
	struct aw_loss zero = { .first = now };
	struct aw_loss *loss = losses.lookup_or_try_init(&key, &zero);

	if (!loss)
		return;
	__sync_fetch_and_add(&loss->events, events);
	__sync_fetch_and_add(&loss->bytes, bytes);
	loss->last = now;
}

/*
 * An event is lost: it was seen and is not submitted. The packet programs can be
 * interrupted by each other on one CPU, hence atomic additions.
 */
static inline __attribute__((always_inline)) void lose(struct account *a, u32 cause, u64 bytes)
{
	__sync_fetch_and_add(&a->counters->seen, 1);
	__sync_fetch_and_add(&a->counters->lost[cause], 1);
	__sync_fetch_and_add(&a->counters->lost_bytes[cause], bytes);
	blame(a, cause, 1, bytes);
}

/* An event goes out, but these bytes of it do not. */
static inline __attribute__((always_inline)) void lose_bytes(struct account *a, u32 cause,
							     u64 bytes)
{
	__sync_fetch_and_add(&a->counters->lost_bytes[cause], bytes);
	blame(a, cause, 0, bytes);
}

/* The event is on its way. */
static inline __attribute__((always_inline)) void count_submitted(struct account *a)
{
	__sync_fetch_and_add(&a->counters->submitted, 1);
}

/* BPF_RB_AVAIL_DATA: what lies in the ring and was not given back; or a position. */
static inline __attribute__((always_inline)) u64 ring_query(u64 what)
{
	u32 zero = 0;
	void *r = rings.lookup(&zero);

	return r ? bpf_ringbuf_query(r, what) : 0;
}

/*
 * Whether there is room for len bytes of this cgroup. One that floods must not
 * cost its neighbours a record, so each may have at most PATIENCE times what is
 * free: dynamic thresholds, as switches share their packet memory (Choudhury and
 * Hahne, IEEE/ACM Transactions on Networking 6(2), 1998). One alone gets 4/5 of
 * the ring for payload and 16/17 with its processes and connections; n that flood
 * leave 1/(1 + 4n) free. Below FAIR_FROM nothing is counted and it costs one helper.
 *
 * What a cgroup has in the ring is bounded from above by two heaps: what it wrote
 * since a position, and what it wrote before that position but after another.
 * Once the reader has passed the position, the older heap is gone.
 */
static inline __attribute__((always_inline)) int has_room(u64 cgroup, u64 len, u64 patience)
{
	u64 fill = ring_query(BPF_RB_AVAIL_DATA);
	u64 produced, consumed;
	struct share fresh = {};
	struct share *s;

	if (fill < FAIR_FROM)
		return 1;
	consumed = ring_query(BPF_RB_CONS_POS);
	produced = ring_query(BPF_RB_PROD_POS);
	fresh.since = produced;
	s = shares.lookup_or_try_init(&cgroup, &fresh);
	if (!s)
		return 1;
	if (consumed >= s->since) {
		s->before = s->after;
		s->after = 0;
		s->since = produced;
	}
	if (fill > RING_BYTES || s->before + s->after + len > (RING_BYTES - fill) * patience)
		return 0;
	__sync_fetch_and_add(&s->after, len);
	return 1;
}

/* Whether the agent asked that nothing of it be lost: asked only when room is short. */
static inline __attribute__((always_inline)) int holds(u64 cgroup)
{
	u32 *overflow = policies.lookup(&cgroup);

	return overflow && *overflow == OVERFLOW_HOLD;
}

/*
 * Stop the current process when its agent wants to be held and the ring is half
 * full: what it has under way still fits. It is the counterpart of refusing a packet
 * for what no packet filter sees. The recorder continues it when there is room.
 */
static inline __attribute__((always_inline)) void hold_back(struct account *a)
{
	u32 tgid = bpf_get_current_pid_tgid() >> 32;
	u8 one = 1;

	if (ring_query(BPF_RB_AVAIL_DATA) < RING_BYTES / 2 || !holds(a->cgroup))
		return;
	if (stopped.update(&tgid, &one) || bpf_send_signal(SIGSTOP_NR))
		return;
	__sync_fetch_and_add(&a->counters->held, 1);
}

/*
 * Waking the reader for each event costs half the throughput of a ping-pong.
 * It looks every few milliseconds by itself; wake it only when much has gathered.
 */
static inline __attribute__((always_inline)) u64 wake_flag(u64 len)
{
	u32 zero = 0;
	u64 *bytes = unannounced.lookup(&zero);

	if (!bytes)
		return BPF_RB_NO_WAKEUP_FLAG;
	*bytes += len;
	if (*bytes < WAKE_BYTES)
		return BPF_RB_NO_WAKEUP_FLAG;
	*bytes = 0;
	return BPF_RB_FORCE_WAKEUP_FLAG;
}

static inline __attribute__((always_inline)) void fill_header(struct aw_header *h, u16 kind,
							      u16 flags, u64 cgroup)
{
	u64 id = bpf_get_current_pid_tgid();

	h->kind = kind;
	h->flags = flags;
	h->boottime = bpf_ktime_get_boot_ns();
	h->cgroup = cgroup;
	h->tgid = id >> 32;
	h->tid = id;
}

/* Number the event: a reader sees from the numbers of a program and CPU where something is missing. */
static inline __attribute__((always_inline)) void number(struct account *a, struct aw_header *h)
{
	h->serial = __sync_fetch_and_add(&a->counters->seen, 1);
	h->cpu = bpf_get_smp_processor_id();
	h->program = a->program;
	h->reserved = 0;
}

/*
 * Copy a finished event of len bytes to the ring. bytes: of payload in it, for
 * the account if it is lost.
 */
static inline __attribute__((always_inline)) int submit_of(struct account *a, void *event, u64 len,
							   u64 bytes, u64 patience)
{
	KEEP_BOUND(len);
	if (len > SCRATCH_BYTES)
		return -1;
	if (!has_room(a->cgroup, len, patience)) {
		lose(a, AW_LOST_RING, bytes);
		return -1;
	}
	((struct aw_header *)event)->len = len;
	number(a, event);
	if (ring.ringbuf_output(event, len, wake_flag(len))) {
		__sync_fetch_and_add(&a->counters->lost[AW_LOST_RING], 1);
		__sync_fetch_and_add(&a->counters->lost_bytes[AW_LOST_RING], bytes);
		blame(a, AW_LOST_RING, 1, bytes);
		return -1;
	}
	count_submitted(a);
	return 0;
}

/* An event about a process or a connection. */
static inline __attribute__((always_inline)) int submit(struct account *a, void *event, u64 len,
							u64 bytes)
{
	return submit_of(a, event, len, bytes, PATIENCE_CONTROL);
}

/* An event that carries what was sent or received. */
static inline __attribute__((always_inline)) int submit_payload(struct account *a, void *event,
								u64 len, u64 bytes)
{
	return submit_of(a, event, len, bytes, PATIENCE_PAYLOAD);
}

static inline __attribute__((always_inline)) struct scratch *scratch_of_cpu(void)
{
	u32 cpu = bpf_get_smp_processor_id();

	return scratch.lookup(&cpu);
}

#endif
