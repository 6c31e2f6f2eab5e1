/* SPDX-License-Identifier: (MIT OR GPL-2.0-only) */
/*
 * Calls by which a watched process reaches into another one: what that one does
 * from then on may be the agent's doing.
 */
#include "divergence.h"

#define PTRACE_TRACEME_NR 0

static inline __attribute__((always_inline)) int reach(u32 technique, u32 target)
{
	u32 tgid = bpf_get_current_pid_tgid() >> 32;
	struct tag *tag = watched();
	struct account a;

	if (!tag || target == tgid || !open_account(&a, AW_P_OUTSIDE, tag->cgroup))
		return 0;
	diverge(&a, technique, 0, 0, 0, target);
	hold_back(&a);
	return 0;
}

/* The first two arguments of a system call: tracepoint arguments. */
struct call_enter {
	u64 common;
	u64 number;
	u64 first;
	u64 second;
};

/* ptrace(request, pid, ...) */
int on_enter_ptrace(struct call_enter *ctx)
{
	return ctx->first == PTRACE_TRACEME_NR ? 0 : reach(AW_T_PTRACE, ctx->second);
}

/* process_vm_writev(pid, ...) */
int on_enter_vm_writev(struct call_enter *ctx)
{
	return reach(AW_T_VM_WRITEV, ctx->first);
}

/* pidfd_getfd(pidfd, fd, ...): the process behind the descriptor is not looked up */
int on_enter_pidfd_getfd(struct call_enter *ctx)
{
	return reach(AW_T_PIDFD_GETFD, 0);
}
