// SPDX-License-Identifier: Apache-2.0
/*
 * inject PID COMMAND: make a process of the same user run a shell command. Its registers and stack are changed by
 * ptrace(2) and process_vm_writev(2) so that its next instruction is execve(2).
 */
#include "pg.h"
#include <sys/ptrace.h>
#include <sys/uio.h>
#include <sys/user.h>
#include <sys/wait.h>

int main(int argc, char **argv)
{
	pid_t pid = atoi(argv[1]);
	struct user_regs_struct regs;
	unsigned long long base;
	struct {
		char shell[16], option[8], command[512];
		uint64_t argv[4];
	} image = { .shell = "/bin/sh", .option = "-c" };
	struct iovec here = { &image, sizeof(image) }, there;

	(void)argc;
	snprintf(image.command, sizeof(image.command), "%s", argv[2]);
	MUST(ptrace(PTRACE_ATTACH, pid, NULL, NULL));
	MUST(waitpid(pid, NULL, 0));
	MUST(ptrace(PTRACE_GETREGS, pid, NULL, &regs));
	base = (regs.rsp - 4096) & ~15ULL;
	image.argv[0] = base;
	image.argv[1] = base + sizeof(image.shell);
	image.argv[2] = base + sizeof(image.shell) + sizeof(image.option);
	there = (struct iovec){ (void *)base, sizeof(image) };
	MUST(process_vm_writev(pid, &here, 1, &there, 1, 0));
	MUST(ptrace(PTRACE_POKETEXT, pid, regs.rip, (void *)0x050fUL)); /* syscall */
	regs.rax = 59;
	regs.orig_rax = -1;
	regs.rdi = base;
	regs.rsi = base + ((char *)image.argv - (char *)&image);
	regs.rdx = 0;
	MUST(ptrace(PTRACE_SETREGS, pid, NULL, &regs));
	MUST(ptrace(PTRACE_DETACH, pid, NULL, NULL));
	return 0;
}
