/* SPDX-License-Identifier: (MIT OR GPL-2.0-only) */
/*
 * Files that watched tasks map to run them: each is told of once, so that somebody can
 * look for a TLS library in it. Not by name, and not by looking at /proc now and then:
 * a library is known before its first function is called, if the process is stopped for
 * that long (SETTING_HOLD).
 */
#include "path.h"

#define PROT_EXEC_FLAG	   4
#define MAP_ANONYMOUS_FLAG 0x20

/* Tell of the file, unless that was done. */
static inline __attribute__((always_inline)) int tell_file(struct tag *tag, void *file, u64 address)
{
	struct scratch *s = scratch_of_cpu();
	struct file_key key = {};
	struct aw_mapped *e;
	struct account a;
	void *inode = NULL, *sb = NULL;
	u32 zero = 0, tgid = bpf_get_current_pid_tgid() >> 32;
	u32 *setting = settings.lookup(&zero);
	u64 end, now = bpf_ktime_get_boot_ns();
	u16 cut = 0;
	u8 one = 1;

	KREAD(inode, file, OFF(file, f_inode));
	KREAD(key.inode, inode, OFF(inode, i_ino));
	KREAD(key.generation, inode, OFF(inode, i_generation));
	KREAD(sb, inode, OFF(inode, i_sb));
	KREAD(key.device, sb, OFF(super_block, s_dev));
	if (files.lookup(&key) || !s || !open_account(&a, AW_P_MAPPED, tag->cgroup))
		return 0;
	e = (struct aw_mapped *)s->data;
	__builtin_memset(e, 0, sizeof(*e));
	fill_header(&e->h, AW_MAPPED, 0, tag->cgroup);
	e->inode = key.inode;
	e->device = key.device;
	e->generation = key.generation;
	e->address = address;
	end = put_path(s, sizeof(*e), file + OFF(file, f_path), &cut, 1);
	e->path_len = end - sizeof(*e);
	e->path_flags = cut;
	if (setting && *setting & SETTING_HOLD && !waiting.update(&tgid, &now)) {
		e->stopped = !bpf_send_signal(SIGSTOP_NR);
		if (!e->stopped)
			waiting.delete(&tgid);
	}
	KEEP_BOUND(end);
	if (end > SCRATCH_BYTES / 4)
		return 0;
	/* Only what was told of is known: an event that is lost is told again with the next mapping. */
	if (!submit(&a, e, end, 0))
		files.update(&key, &one);
	return 0;
}

/* mmap(address, length, prot, flags, fd, offset) */
int on_exit_mmap(struct syscall_exit *ctx)
{
	struct tag *tag = watched();
	u64 prot = 0, flags = 0, fd = 0;
	void *regs, *file;

	if (!tag || ctx->result <= 0)
		return 0;
	regs = registers();
	KREAD(prot, regs, OFF(pt_regs, dx));
	KREAD(flags, regs, OFF(pt_regs, r10));
	if (!(prot & PROT_EXEC_FLAG) || flags & MAP_ANONYMOUS_FLAG)
		return 0;
	KREAD(fd, regs, OFF(pt_regs, r8));
	file = file_of_fd(fd);
	return file ? tell_file(tag, file, ctx->result) : 0;
}

/* sched_process_exec(task, old_pid, bprm) */
int on_exec_file(struct bpf_raw_tracepoint_args *ctx)
{
	void *mm = NULL, *file = NULL;
	struct tag *tag = watched();

	if (!tag)
		return 0;
	KREAD(mm, (void *)ctx->args[0], OFF(task_struct, mm));
	KREAD(file, mm, OFF(mm_struct, exe_file));
	return file ? tell_file(tag, file, 0) : 0;
}
