/* SPDX-License-Identifier: (MIT OR GPL-2.0-only) */
/*
 * The life of processes: fork, exec, execs that fail, exit.
 *
 * Everything is read from the kernel's own copies at the moment it happens, so
 * a process that lives for a millisecond is as complete as any other. The
 * arguments come from the new address space at sched_process_exec, where the
 * kernel has just put them; no thread of the old one exists any more.
 */
#include "path.h"
#include "tls.h"

#define ARGV_CHUNK 32768ULL
/* 1 MiB of arguments; beyond it the original length is still told. */
#define ARGV_CHUNKS	 32
#define FAILED_ARGS	 64
#define FAILED_ARG_BYTES 256

#define S_IFMT_BITS	       0170000
#define SIGNAL_GROUP_EXIT_FLAG 4
#define TMPFS_MAGIC_NR	       0x01021994

/* Flags and identity of the file that is being run. */
static inline __attribute__((always_inline)) void describe_exe(struct aw_exec *e, void *file)
{
	void *inode = NULL;
	void *sb = NULL;
	void *dentry = NULL;
	void *parent = NULL;
	u32 nlink = 1;

	KREAD(inode, file, OFF(file, f_inode));
	KREAD(e->inode, inode, OFF(inode, i_ino));
	KREAD(nlink, inode, OFF(inode, i_nlink));
	KREAD(sb, inode, OFF(inode, i_sb));
	KREAD(e->device, sb, OFF(super_block, s_dev));
	KREAD(dentry, file, OFF(file, f_path) + OFF(path, dentry));
	KREAD(parent, dentry, OFF(dentry, d_parent));
	if (nlink == 0)
		e->h.flags |= AW_F_DELETED;
	if (parent == dentry && nlink == 0) {
		u64 magic = 0;

		KREAD(magic, sb, OFF(super_block, s_magic));
		if (magic == TMPFS_MAGIC_NR)
			e->h.flags |= AW_F_MEMFD;
	}
}

static inline __attribute__((always_inline)) u32 parent_tgid(void *task)
{
	void *parent = NULL;
	u32 tgid = 0;

	KREAD(parent, task, OFF(task_struct, real_parent));
	KREAD(tgid, parent, OFF(task_struct, tgid));
	return tgid;
}

/* sched_process_fork(parent, child) */
int on_fork(struct bpf_raw_tracepoint_args *ctx)
{
	void *child = (void *)ctx->args[1];
	u32 ppid = bpf_get_current_pid_tgid() >> 32;
	struct tag *tag = tags.lookup(&ppid);
	struct aw_fork e = {};
	struct account a;
	struct tag new = {};
	void *cred = NULL;
	u32 tgid = 0;

	KREAD(tgid, child, OFF(task_struct, tgid));
	if (tgid == ppid)
		return 0; /* a thread */
	/* CLONE_INTO_CGROUP puts the child of an unwatched process under watch. */
	if (tag)
		new = *tag; /* a subshell goes on reading its parent's input */
	else
		new.cgroup = watched_cgroup_of_task(child);
	if (!new.cgroup)
		return 0;
	if (!open_account(&a, AW_P_FORK, new.cgroup))
		return 0;
	if (tags.update(&tgid, &new)) {
		lose(&a, AW_LOST_MAP, 0);
		return 0;
	}
	fill_header(&e.h, AW_FORK, 0, new.cgroup);
	e.h.tgid = tgid;
	KREAD(e.h.tid, child, OFF(task_struct, pid));
	e.ppid = ppid;
	KREAD(cred, child, OFF(task_struct, cred));
	KREAD(e.uid, cred, OFF(cred, uid));
	bpf_get_current_comm(e.comm, sizeof(e.comm));
	submit(&a, &e, sizeof(e), 0);
	hold_back(&a);
	return 0;
}

/* In a mount namespace of its own a path can lead to another file than on the host. */
static inline __attribute__((always_inline)) int has_other_mounts(void *task)
{
	void *nsproxy = NULL, *mounts = NULL;
	u32 inum = 0;

	KREAD(nsproxy, task, OFF(task_struct, nsproxy));
	KREAD(mounts, nsproxy, OFF(nsproxy, mnt_ns));
	KREAD(inum, mounts, OFF(mnt_namespace, ns) + OFF(ns_common, inum));
	return inum != MOUNT_NAMESPACE;
}

/* sched_process_exec(task, old_pid, bprm) */
int on_exec(struct bpf_raw_tracepoint_args *ctx)
{
	void *task = (void *)ctx->args[0];
	void *bprm = (void *)ctx->args[2];
	struct tag *tag = watched();
	struct account a;
	struct scratch *s;
	struct aw_exec *e;
	void *mm = NULL, *file = NULL, *cred = NULL, *fs = NULL, *filename = NULL;
	u64 start = 0, end = 0, cgroup, offset, total, n;
	u16 cut = 0;
	long got;
	int i;

	if (!tag)
		return 0;
	tag->reader = 0;
	cgroup = tag->cgroup;
	s = scratch_of_cpu();
	if (!s || !open_account(&a, AW_P_EXEC, cgroup))
		return 0;
	e = (struct aw_exec *)s->data;
	__builtin_memset(e, 0, sizeof(*e));
	fill_header(&e->h, AW_EXEC, 0, cgroup);
	e->ppid = parent_tgid(task);
	KREAD(cred, task, OFF(task_struct, cred));
	KREAD(e->uid, cred, OFF(cred, uid));
	KREAD(e->gid, cred, OFF(cred, gid));
	bpf_get_current_comm(e->comm, sizeof(e->comm));
	KREAD(mm, task, OFF(task_struct, mm));
	KREAD(file, mm, OFF(mm_struct, exe_file));
	describe_exe(e, file);
	if (has_other_mounts(task))
		e->h.flags |= AW_F_OTHER_MOUNTS;

	offset = put_path(s, sizeof(*e), file + OFF(file, f_path), &cut, 1);
	e->exe_len = offset - sizeof(*e);
	n = offset;
	KREAD(fs, task, OFF(task_struct, fs));
	offset = put_path(s, offset, fs + OFF(fs_struct, pwd), &cut, 2);
	e->cwd_len = offset - n;
	e->path_flags = cut;
	KREAD(filename, bprm, OFF(linux_binprm, filename));
	KEEP_BOUND(offset);
	if (offset >= SCRATCH_BYTES / 4)
		return 0;
	got = bpf_probe_read_kernel_str(s->data + offset, PATH_BYTES, filename);
	if (got > 0 && got <= PATH_BYTES) {
		e->filename_len = got;
		offset += got;
	}

	KREAD(start, mm, OFF(mm_struct, arg_start));
	KREAD(end, mm, OFF(mm_struct, arg_end));
	total = end - start;
	e->args_total = total;
	n = total < ARGV_CHUNK ? total : ARGV_CHUNK;
	KEEP_BOUND(offset);
	KEEP_BOUND(n);
	if (offset >= SCRATCH_BYTES / 2 || n > ARGV_CHUNK)
		return 0;
	if (bpf_probe_read_user(s->data + offset, n, (void *)start)) {
		lose_bytes(&a, AW_LOST_MEMORY, n);
	} else {
		e->args_len = n;
		offset += n;
	}
	KEEP_BOUND(offset);
	if (offset > SCRATCH_BYTES)
		return 0;
	if (submit(&a, s->data, offset, n)) {
		hold_back(&a);
		return 0;
	}

	for (i = 1; i < ARGV_CHUNKS && total > ARGV_CHUNK * i; i++) {
		struct aw_argv *more = (struct aw_argv *)s->data;

		n = total - ARGV_CHUNK * i;
		if (n > ARGV_CHUNK)
			n = ARGV_CHUNK;
		__builtin_memset(more, 0, sizeof(*more));
		fill_header(&more->h, AW_ARGV, 0, cgroup);
		more->offset = ARGV_CHUNK * i;
		KEEP_BOUND(n);
		if (n > ARGV_CHUNK)
			break;
		if (bpf_probe_read_user(s->data + sizeof(*more), n,
					(void *)start + ARGV_CHUNK * i)) {
			lose_bytes(&a, AW_LOST_MEMORY, n);
			break;
		}
		more->args_len = n;
		submit(&a, s->data, sizeof(*more) + n, n);
	}
	if (total > ARGV_CHUNK * ARGV_CHUNKS)
		lose_bytes(&a, AW_LOST_LIMIT, total - ARGV_CHUNK * ARGV_CHUNKS);
	hold_back(&a);
	return 0;
}

/*
 * A failed exec leaves the address space as it was. The arguments are read at
 * the exit of the call: its registers are still those of its entry, and the
 * file name has just been read by the kernel and so is resident.
 */
static inline __attribute__((always_inline)) int exec_failed(struct syscall_exit *ctx, int is_at)
{
	struct account a;
	struct tag *tag;
	struct aw_exec_failed *e;
	struct scratch *s;
	void *regs;
	u64 filename = 0, argv = 0, offset;
	int i;
	long n;

	if (ctx->result >= 0)
		return 0;
	tag = watched();
	if (!tag)
		return 0;
	s = scratch_of_cpu();
	if (!s || !open_account(&a, AW_P_EXEC_FAILED, tag->cgroup))
		return 0;
	regs = registers();
	if (is_at) {
		KREAD(filename, regs, OFF(pt_regs, si));
		KREAD(argv, regs, OFF(pt_regs, dx));
	} else {
		KREAD(filename, regs, OFF(pt_regs, di));
		KREAD(argv, regs, OFF(pt_regs, si));
	}
	e = (struct aw_exec_failed *)s->data;
	__builtin_memset(e, 0, sizeof(*e));
	fill_header(&e->h, AW_EXEC_FAILED, AW_F_USER_MEMORY, tag->cgroup);
	e->error = ctx->result;
	n = bpf_probe_read_user_str(s->data + sizeof(*e), PATH_BYTES, (void *)filename);
	if (n < 0 || n > PATH_BYTES)
		n = 0;
	e->filename_len = n;
	offset = sizeof(*e) + n;
	for (i = 0; i < FAILED_ARGS; i++) {
		u64 arg = 0;

		if (bpf_probe_read_user(&arg, sizeof(arg), (void *)argv + 8 * i) || !arg)
			break;
		KEEP_BOUND(offset);
		if (offset >= SCRATCH_BYTES / 2)
			break;
		n = bpf_probe_read_user_str(s->data + offset, FAILED_ARG_BYTES, (void *)arg);
		if (n <= 0 || n > FAILED_ARG_BYTES)
			break;
		offset += n;
		e->args_len += n;
		e->argc_read++;
	}
	KEEP_BOUND(offset);
	if (offset > SCRATCH_BYTES)
		return 0;
	submit(&a, s->data, offset, 0);
	hold_back(&a);
	return 0;
}

int on_exit_execve(struct syscall_exit *ctx)
{
	return exec_failed(ctx, 0);
}

int on_exit_execveat(struct syscall_exit *ctx)
{
	return exec_failed(ctx, 1);
}

/* sched_process_exit(task[, group_dead]), called for each thread */
int on_exit(struct bpf_raw_tracepoint_args *ctx)
{
	void *task = (void *)ctx->args[0];
	struct tag *tag = watched();
	struct aw_exit e = {};
	void *signal = NULL, *leader = NULL;
	struct account a;
	u32 tgid, flags = 0;
	s32 live = 0;

	if (!tag || !open_account(&a, AW_P_EXIT, tag->cgroup))
		return 0;
	forget_tls_call();
	KREAD(signal, task, OFF(task_struct, signal));
	KREAD(live, signal, OFF(signal_struct, live));
	if (live > 0)
		return 0;
	fill_header(&e.h, AW_EXIT, AW_F_GROUP_DEAD, tag->cgroup);
	tgid = e.h.tgid;
	/* Two last threads can both see no other alive: only one of them deletes the tag. */
	if (tags.delete(&tgid))
		return 0;
	KREAD(flags, signal, OFF(signal_struct, flags));
	if (flags & SIGNAL_GROUP_EXIT_FLAG) {
		KREAD(e.exit_code, signal, OFF(signal_struct, group_exit_code));
	} else {
		KREAD(leader, task, OFF(task_struct, group_leader));
		KREAD(e.exit_code, leader, OFF(task_struct, exit_code));
	}
	if (e.exit_code & 0x80)
		e.h.flags |= AW_F_CORE;
	e.ppid = parent_tgid(task);
	stopped.delete(&tgid);
	waiting.delete(&tgid);
	submit(&a, &e, sizeof(e), 0);
	return 0;
}
