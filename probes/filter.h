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

/*
 * The account of a program on this CPU; looked up once in each run. The packet
 * programs can be interrupted by each other on one CPU, hence atomic additions.
 */
static inline __attribute__((always_inline)) struct aw_counters *counters_of(u32 program)
{
	return counters.lookup(&program);
}

/* An event is lost: it was seen and is not submitted. */
static inline __attribute__((always_inline)) void lose(struct aw_counters *c, u32 cause, u64 bytes)
{
	__sync_fetch_and_add(&c->seen, 1);
	__sync_fetch_and_add(&c->lost[cause], 1);
	__sync_fetch_and_add(&c->lost_bytes[cause], bytes);
}

/* An event goes out, but these bytes of it do not. */
static inline __attribute__((always_inline)) void lose_bytes(struct aw_counters *c, u32 cause,
							     u64 bytes)
{
	__sync_fetch_and_add(&c->lost_bytes[cause], bytes);
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

/*
 * Copy a finished event of len bytes to the ring. bytes: of payload in it, for
 * the account if it is lost.
 */
static inline __attribute__((always_inline)) int submit(struct aw_counters *c, void *event, u64 len,
							u64 bytes)
{
	KEEP_BOUND(len);
	if (len > SCRATCH_BYTES)
		return -1;
	((struct aw_header *)event)->len = len;
	if (ring.ringbuf_output(event, len, wake_flag(len))) {
		lose(c, AW_LOST_RING, bytes);
		return -1;
	}
	__sync_fetch_and_add(&c->seen, 1);
	__sync_fetch_and_add(&c->submitted, 1);
	return 0;
}

static inline __attribute__((always_inline)) struct scratch *scratch_of_cpu(void)
{
	u32 cpu = bpf_get_smp_processor_id();

	return scratch.lookup(&cpu);
}

#endif
