/* SPDX-License-Identifier: (MIT OR GPL-2.0-only) */
/*
 * The life of watched cgroups and what moves in and out of them. The events
 * name every cgroup when it is made, so one that lives for a millisecond is
 * known; the last process to leave ends a session.
 */
#include "filter.h"

#define CGROUP_PATH_BYTES 4096

static inline __attribute__((always_inline)) int put_cgroup(u64 id, u32 operation, void *path,
							    u64 cgroup, u32 tgid)
{
	struct scratch *s = scratch_of_cpu();
	struct account a;
	struct aw_cgroup *e;
	long n;

	if (!s || !open_account(&a, AW_P_CGROUP, cgroup))
		return 0;
	e = (struct aw_cgroup *)s->data;
	__builtin_memset(e, 0, sizeof(*e));
	fill_header(&e->h, AW_CGROUP, 0, cgroup);
	if (tgid) {
		e->h.tgid = tgid;
		e->h.tid = tgid;
	}
	e->id = id;
	e->operation = operation;
	n = bpf_probe_read_kernel_str(s->data + sizeof(*e), CGROUP_PATH_BYTES, path);
	if (n < 0 || n > CGROUP_PATH_BYTES) {
		lose_bytes(&a, AW_LOST_MEMORY, CGROUP_PATH_BYTES);
		n = 0;
	}
	e->path_len = n;
	submit(&a, s->data, sizeof(*e) + n, 0);
	return 0;
}

/* A cgroup that is made in one that is held is held from its first process on. */
static inline __attribute__((always_inline)) void inherit_policy(void *cgroup, u64 id)
{
	void *css = NULL;
	void *kn = NULL;
	u64 parent = 0;
	u32 *known, policy;

	KREAD(css, cgroup, OFF(cgroup, self) + OFF(cgroup_subsys_state, parent));
	KREAD(kn, css, OFF(cgroup, kn) - OFF(cgroup, self));
	KREAD(parent, kn, OFF(kernfs_node, id));
	known = policies.lookup(&parent);
	if (!known)
		return;
	policy = *known;
	policies.update(&id, &policy);
}

/* cgroup_mkdir(cgroup, path) */
int on_cgroup_mkdir(struct bpf_raw_tracepoint_args *ctx)
{
	u64 id = watched_cgroup((void *)ctx->args[0]);

	if (id)
		inherit_policy((void *)ctx->args[0], id);
	return id ? put_cgroup(id, AW_CG_MKDIR, (void *)ctx->args[1], id, 0) : 0;
}

/* cgroup_rmdir(cgroup, path) */
int on_cgroup_rmdir(struct bpf_raw_tracepoint_args *ctx)
{
	u64 id = watched_cgroup((void *)ctx->args[0]);

	if (id)
		policies.delete(&id);
	return id ? put_cgroup(id, AW_CG_RMDIR, (void *)ctx->args[1], id, 0) : 0;
}

/* cgroup_notify_populated(cgroup, path, value) */
int on_cgroup_populated(struct bpf_raw_tracepoint_args *ctx)
{
	u64 id = watched_cgroup((void *)ctx->args[0]);
	u32 operation = (s32)ctx->args[2] ? AW_CG_POPULATED : AW_CG_EMPTY;

	return id ? put_cgroup(id, operation, (void *)ctx->args[1], id, 0) : 0;
}

/* cgroup_attach_task(cgroup, path, task, threadgroup) */
int on_cgroup_attach(struct bpf_raw_tracepoint_args *ctx)
{
	void *cgroup = (void *)ctx->args[0];
	void *task = (void *)ctx->args[2];
	u64 id = watched_cgroup(cgroup);
	struct account a;
	struct tag *tag;
	struct tag new = {};
	void *root = NULL;
	s32 hierarchy = -1;
	u32 tgid = 0;

	KREAD(tgid, task, OFF(task_struct, tgid));
	tag = tags.lookup(&tgid);
	if (!id && !tag)
		return 0;
	KREAD(root, cgroup, OFF(cgroup, root));
	KREAD(hierarchy, root, OFF(cgroup_root, hierarchy_id));
	if (hierarchy != 0)
		return 0; /* a move in a v1 hierarchy changes nothing here */
	if (!tag) {
		new.cgroup = id;
		if (tags.update(&tgid, &new) && open_account(&a, AW_P_CGROUP, id))
			lose(&a, AW_LOST_MAP, 0);
	} else {
		new.cgroup = tag->cgroup; /* a watched process keeps its session wherever it goes */
	}
	if (!id) {
		void *kn = NULL;

		KREAD(kn, cgroup, OFF(cgroup, kn));
		KREAD(id, kn, OFF(kernfs_node, id));
	}
	return put_cgroup(id, AW_CG_ATTACH, (void *)ctx->args[1], new.cgroup, tgid);
}
