/* SPDX-License-Identifier: (MIT OR GPL-2.0-only) */
/*
 * What interpreters read as their input: commands that are no exec.
 *
 * The hook is the exit of read(2), which shells, database clients and language
 * interpreters use for it. Everybody's reads pay the look-up of the tag, those of
 * watched programs that are no interpreters a comparison more. The buffer is the
 * process's own memory, read when the kernel has just filled it.
 *
 * An interpreter is known by the name of its file in the kernel, not by its comm
 * or argv[0]. Its input is what was on descriptor 0 when the program began, on
 * whatever descriptor it is read (bash moves it out of the way of a redirection,
 * libuv opens the terminal anew), and what is on descriptor 0 now.
 */
#include "sock.h"

#define IFIFO 0010000
#define IFCHR 0020000
#define IFREG 0100000

#define ICANON_FLAG 0000002
#define ECHO_FLAG   0000010

#define READS_COMMANDS 1
#define READS_DATA     2

#define INPUT_PIECE  32768ULL
#define INPUT_PIECES 8
#define NAME_START   16

/*
 * A process may be told 64 KiB of input each second, and 1 MiB ahead: a data set
 * that is piped through an interpreter is counted beyond that, not copied.
 */
#define INPUT_BYTE_NS  (1000000000ULL / 65536)
#define INPUT_AHEAD_NS (1048576 * INPUT_BYTE_NS)

#define NAMED(word) named(name, word, sizeof(word) - 1)

/* Whether name is word, or word and a version: python3.11, ksh93, bash-static. */
static inline __attribute__((always_inline)) int named(const char *name, const char *word, int n)
{
	char next = name[n];
	int i;

#pragma unroll
	for (i = 0; i < n; i++)
		if (name[i] != word[i])
			return 0;
	return !next || next == '-' || next == '.' || (next >= '0' && next <= '9');
}

static inline __attribute__((always_inline)) int reads_commands(void *task)
{
	void *mm = NULL, *file = NULL, *dentry = NULL, *at = NULL;
	char name[NAME_START] = {};

	KREAD(mm, task, OFF(task_struct, mm));
	KREAD(file, mm, OFF(mm_struct, exe_file));
	KREAD(dentry, file, OFF(file, f_path) + OFF(path, dentry));
	KREAD(at, dentry, OFF(dentry, d_name) + OFF(qstr, name));
	bpf_probe_read_kernel_str(name, sizeof(name), at);
	return NAMED("sh") || NAMED("bash") || NAMED("dash") || NAMED("ash") || NAMED("busybox") ||
	       NAMED("zsh") || NAMED("ksh") || NAMED("mksh") || NAMED("yash") || NAMED("fish") ||
	       NAMED("csh") || NAMED("tcsh") || NAMED("python") || NAMED("pypy") || NAMED("node") ||
	       NAMED("nodejs") || NAMED("bun") || NAMED("deno") || NAMED("perl") || NAMED("ruby") ||
	       NAMED("irb") || NAMED("php") || NAMED("lua") || NAMED("luajit") || NAMED("tclsh") ||
	       NAMED("psql") || NAMED("mysql") || NAMED("mariadb") || NAMED("sqlite") ||
	       NAMED("redis-cli") || NAMED("valkey-cli") || NAMED("mongosh");
}

static inline __attribute__((always_inline)) void *inode_of_file(void *file)
{
	void *inode = NULL;

	if (file)
		KREAD(inode, file, OFF(file, f_inode));
	return inode;
}

/* The first read of a program: mostly that of the dynamic loader. */
static inline __attribute__((always_inline)) void look_at_reader(struct tag *tag)
{
	tag->reader = READS_DATA;
	if (!reads_commands((void *)bpf_get_current_task()))
		return;
	tag->input = (u64)inode_of_file(file_of_fd(0));
	tag->reader = READS_COMMANDS;
}

/* Unix98 pseudo terminals, virtual consoles, /dev/tty, and serial lines of several makes. */
static inline __attribute__((always_inline)) int is_tty(void *inode)
{
	u32 device = 0, major;

	KREAD(device, inode, OFF(inode, i_rdev));
	major = device >> 20;
	return (major >= 136 && major <= 143) || major == 4 || major == 5 || major == 166 ||
	       major == 188 || major == 204 || major == 229;
}

/* A terminal that collects lines and does not show them: what is typed is a password. */
static inline __attribute__((always_inline)) int hides_typing(void *file)
{
	void *private = NULL, *tty = NULL;
	u32 flags = 0;

	KREAD(private, file, OFF(file, private_data));
	KREAD(tty, private, OFF(tty_file_private, tty));
	if (KREAD(flags, tty, OFF(tty_struct, termios) + OFF(ktermios, c_lflag)))
		return 0;
	return (flags & ICANON_FLAG) && !(flags & ECHO_FLAG);
}

/* Whether bytes more may be copied now (a generic cell rate algorithm). */
static inline __attribute__((always_inline)) int may_copy(struct tag *tag, u64 bytes)
{
	u64 now = bpf_ktime_get_boot_ns();
	u64 due = tag->input_due > now ? tag->input_due : now;

	if (due > now + INPUT_AHEAD_NS)
		return 0;
	tag->input_due = due + bytes * INPUT_BYTE_NS;
	return 1;
}

static inline __attribute__((always_inline)) void put_input(struct account *a, struct scratch *s,
							    u64 base, u64 total)
{
	struct aw_input *e = (struct aw_input *)s->data;
	int i;

	for (i = 0; i < INPUT_PIECES && total; i++) {
		u64 n = total < INPUT_PIECE ? total : INPUT_PIECE;

		KEEP_BOUND(n);
		if (n > INPUT_PIECE)
			return;
		e->total = n;
		e->captured = n;
		if (bpf_probe_read_user(s->data + sizeof(*e), n, (void *)base)) {
			lose_bytes(a, AW_LOST_MEMORY, n);
			e->omitted = AW_OMITTED_MEMORY;
			e->captured = 0;
			submit_payload(a, e, sizeof(*e), 0);
		} else {
			submit_payload(a, e, sizeof(*e) + n, n);
		}
		e->omitted = AW_OMITTED_NOT;
		e->offset += e->source == AW_FROM_FILE ? n : 0;
		base += n;
		total -= n;
	}
	if (!total)
		return;
	e->omitted = AW_OMITTED_LIMIT;
	e->total = total;
	e->captured = 0;
	__sync_fetch_and_add(&a->counters->counted_bytes, total);
	submit_payload(a, e, sizeof(*e), 0);
}

int on_exit_read(struct syscall_exit *ctx)
{
	struct tag *tag = watched();
	s64 result = ctx->result;
	struct aw_input *e;
	struct scratch *s;
	struct account a;
	void *regs, *file, *inode;
	u64 base = 0, position = 0;
	u32 fd = 0;
	u16 mode = 0;

	if (!tag)
		return 0;
	if (!tag->reader)
		look_at_reader(tag);
	if (tag->reader != READS_COMMANDS || result < 0)
		return 0;
	regs = registers();
	KREAD(fd, regs, OFF(pt_regs, di));
	KREAD(base, regs, OFF(pt_regs, si));
	file = file_of_fd(fd);
	inode = inode_of_file(file);
	if (!inode || (fd != 0 && (u64)inode != tag->input))
		return 0;
	KREAD(mode, inode, OFF(inode, i_mode));
	mode &= IFMT;
	if (mode != IFIFO && mode != IFREG && mode != IFSOCK && !(mode == IFCHR && is_tty(inode)))
		return 0;
	s = scratch_of_cpu();
	if (!s || !open_account(&a, AW_P_INPUT, tag->cgroup))
		return 0;
	e = (struct aw_input *)s->data;
	__builtin_memset(e, 0, sizeof(*e));
	fill_header(&e->h, AW_INPUT, AW_F_USER_MEMORY, tag->cgroup);
	KREAD(e->inode, inode, OFF(inode, i_ino));
	e->source = mode == IFIFO  ? AW_FROM_PIPE :
		    mode == IFREG  ? AW_FROM_FILE :
		    mode == IFSOCK ? AW_FROM_SOCKET :
				     AW_FROM_TTY;
	if (mode == IFREG) {
		KREAD(position, file, OFF(file, f_pos));
		e->offset = position - result;
	}
	if (mode == IFCHR && result && hides_typing(file))
		e->omitted = AW_OMITTED_ECHO_OFF;
	else if (result && !may_copy(tag, result))
		e->omitted = AW_OMITTED_LIMIT;
	if (!result || e->omitted) {
		e->total = result;
		__sync_fetch_and_add(&a.counters->counted_bytes, result);
		submit_payload(&a, e, sizeof(*e), 0);
	} else {
		put_input(&a, s, base, result);
	}
	hold_back(&a);
	return 0;
}
