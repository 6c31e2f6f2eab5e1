/* SPDX-License-Identifier: (MIT OR GPL-2.0-only) */
/*
 * What crosses from the kernel into user space. Nothing else does.
 *
 * agentwatch/kernel/abi.py mirrors this file; tests/kernel/test_abi.py compares
 * the two as whole sets from the BTF of the compiled program. A change of any
 * struct or enum here changes ABI_VERSION.
 */
#ifndef AGENTWATCH_ABI_H
#define AGENTWATCH_ABI_H

#define ABI_VERSION 5

enum aw_event_kind {
	AW_FORK = 1,
	AW_EXEC = 2,
	AW_ARGV = 3,
	AW_EXEC_FAILED = 4,
	AW_EXIT = 5,
	AW_CONNECT = 6,
	AW_WIRE = 7,
	AW_SOCK_END = 8,
	AW_UNIX_OPEN = 9,
	AW_UNIX = 10,
	AW_CGROUP = 11,
	AW_ROWS = 12,
	AW_INPUT = 13,
	AW_OUTSIDE = 14,
	AW_DIVERGENCE = 15,
	AW_UNIX_CALL = 16,
	AW_TLS = 17,
	AW_TLS_RECORD = 18,
	AW_TLS_END = 19,
	AW_MAPPED = 20,
};

enum aw_program {
	AW_P_FORK = 0,
	AW_P_EXEC = 1,
	AW_P_EXEC_FAILED = 2,
	AW_P_EXIT = 3,
	AW_P_CONNECT = 4,
	AW_P_EGRESS = 5,
	AW_P_INGRESS = 6,
	AW_P_SOCK_END = 7,
	AW_P_UNIX_SEND = 8,
	AW_P_UNIX_RECV = 9,
	AW_P_CGROUP = 10,
	AW_P_INPUT = 11,
	AW_P_UNIX_COPY = 12,
	AW_P_OUTSIDE = 13,
	AW_P_TLS = 14,
	AW_P_MAPPED = 15,
	AW_P_COUNT = 16,
};

/* Why an event or a part of one did not reach the ring. */
enum aw_lost {
	AW_LOST_RING = 0, /* the ring was full */
	AW_LOST_MEMORY = 1, /* memory of the process or the packet was not readable */
	AW_LOST_MAP = 2, /* a map was full: something is not tracked or not attributed */
	AW_LOST_LIMIT = 3, /* larger than a named limit below */
	AW_LOST_COUNT = 4,
};

enum aw_direction {
	AW_OUT = 0,
	AW_IN = 1,
};

enum aw_flag {
	AW_F_USER_MEMORY = 1, /* bytes came from the memory of the process */
	AW_F_MEMFD = 2, /* exe is a memfd */
	AW_F_DELETED = 4, /* exe has no name left */
	AW_F_SCM_RIGHTS = 8, /* the call passed file descriptors */
	AW_F_COMPAT = 16, /* a 32-bit system call */
	AW_F_ASYNC = 32, /* not made by a system call of the kind (io_uring, splice) */
	AW_F_GROUP_DEAD = 64,
	AW_F_CORE = 128, /* a core was dumped */
	AW_F_UNATTRIBUTED = 256, /* tgid and tid are not known; the cgroup is */
	AW_F_SUPPRESSED = 512, /* the length is exact, the bytes were not copied on purpose */
	AW_F_URGENT = 1024, /* out-of-band: the receiver may never read these bytes */
	AW_F_PEEKED = 2048, /* looked at, not taken: the same bytes come again */
	AW_F_OTHER_MOUNTS = 8192, /* paths are those of another mount namespace than process 1's */
	AW_F_OUTSIDE = 4096, /* on an IP socket that was made outside the watch */
};

enum aw_cgroup_operation {
	AW_CG_MKDIR = 1,
	AW_CG_RMDIR = 2,
	AW_CG_ATTACH = 3,
	AW_CG_POPULATED = 4,
	AW_CG_EMPTY = 5,
};

/* What a divergence is about: how bytes left, or how another process was reached into. */
enum aw_technique {
	AW_T_IO_URING = 1,
	AW_T_SENDFILE = 2,
	AW_T_SPLICE = 3,
	AW_T_AIO = 4,
	AW_T_COMPAT = 5, /* a 32-bit system call */
	AW_T_FOREIGN_TASK = 6, /* a task that is not watched, on a socket of one that is */
	AW_T_UNKNOWN = 7,
	AW_T_PTRACE = 8,
	AW_T_VM_WRITEV = 9,
	AW_T_PIDFD_GETFD = 10,
};

/*
 * What a uprobe's cookie says of the function that it is at. Its lowest four bits are one of
 * the first five, the next four where the number of bytes is found.
 */
enum aw_call {
	AW_CALL_WRITE = 1, /* (connection, buffer, length): plaintext to be sent */
	AW_CALL_READ = 2, /* the same: plaintext that was received */
	AW_CALL_IO = 3, /* (connection): sends or receives, but no plaintext is handed over */
	AW_CALL_FREE = 4, /* (connection): it does not exist any more */
	AW_CALL_RECORD = 5, /* (sink, buffer, length): ciphertext on its way out */
	AW_CALL_KIND = 15,
	AW_COUNT_INT = 16 * 0, /* returned, as an int */
	AW_COUNT_LONG = 16 * 1, /* returned, as a ssize_t */
	AW_COUNT_ALL = 16 * 2, /* the whole buffer, if 0 is returned */
	AW_COUNT_FOURTH = 16 * 4, /* where the fourth argument points, if 1 is returned */
	AW_COUNT_FIFTH = 16 * 5,
	AW_COUNT_WHERE = 16 * 15,
	AW_CALL_GO = 256, /* registers as Go's functions have them */
	AW_CALL_NO_BUFFER = 512, /* the second argument is a file, not a buffer */
};

/* What a read was made from. */
enum aw_input_source {
	AW_FROM_PIPE = 0,
	AW_FROM_TTY = 1,
	AW_FROM_FILE = 2,
	AW_FROM_SOCKET = 3,
};

/* Why bytes that were read are not in the event. */
enum aw_omitted {
	AW_OMITTED_NOT = 0,
	AW_OMITTED_ECHO_OFF = 1, /* the terminal did not show what was typed: a password */
	AW_OMITTED_LIMIT = 2, /* more at once than anybody says in commands */
	AW_OMITTED_MEMORY = 3, /* the memory of the process was not readable */
};

/* Every event begins with this. len counts from here to the last byte used. */
struct aw_header {
	__u32 len;
	__u16 kind;
	__u16 flags;
	__u64 boottime; /* ns */
	__u64 cgroup; /* where the process came under watch */
	__u32 tgid;
	__u32 tid;
	__u32 serial; /* counts what this program saw on this CPU, lost events included */
	__u16 cpu;
	__u8 program; /* enum aw_program */
	__u8 reserved;
};
_Static_assert(sizeof(struct aw_header) == 40, "aw_header");

struct aw_fork {
	struct aw_header h; /* of the child */
	__u32 ppid;
	__u32 uid;
	__u64 reserved;
	char comm[16];
};
_Static_assert(sizeof(struct aw_fork) == 72, "aw_fork");

/*
 * Followed by exe_len bytes of path components, then cwd_len, then the
 * filename as asked for (filename_len), then the first args_len bytes of argv.
 * Components come leaf first, each ended by NUL. The rest of argv, up to
 * args_total, follows in AW_ARGV events of the same tgid before any other.
 */
struct aw_exec {
	struct aw_header h;
	__u32 ppid;
	__u32 uid;
	__u32 gid;
	__u32 device; /* as in stat(2): major << 20 | minor (the kernel's own form) */
	__u64 inode;
	__u32 args_total;
	__u32 args_len;
	__u16 exe_len;
	__u16 cwd_len;
	__u16 filename_len;
	__u16 path_flags; /* 1: exe cut at the limit, 2: cwd cut */
	char comm[16];
};
_Static_assert(sizeof(struct aw_exec) == 96, "aw_exec");

struct aw_argv {
	struct aw_header h;
	__u32 offset;
	__u32 args_len;
};
_Static_assert(sizeof(struct aw_argv) == 48, "aw_argv");

/* Followed by filename_len bytes, then args_len bytes: arguments, each ended by NUL. */
struct aw_exec_failed {
	struct aw_header h;
	__s32 error; /* -errno */
	__u32 argc_read;
	__u32 args_len;
	__u32 filename_len;
};
_Static_assert(sizeof(struct aw_exec_failed) == 56, "aw_exec_failed");

struct aw_exit {
	struct aw_header h;
	__u32 exit_code; /* as wait(2): status << 8 | signal */
	__u32 ppid;
};
_Static_assert(sizeof(struct aw_exit) == 48, "aw_exit");

/*
 * An address: IPv4 and IPv6 in network order; a Unix path has its own field, and so has the
 * sockaddr of a family that is none of these. The same for AW_OUTSIDE: a watched task
 * uses an IP socket that was made outside, so that no packet of it is seen.
 */
struct aw_connect {
	struct aw_header h;
	__u64 cookie; /* of the socket; 0 for Unix */
	__u64 inode; /* of the socket */
	__u64 latency; /* ns, 0 when not known */
	__s32 result; /* 0 or -errno */
	__s32 fd; /* -1 when not known */
	__u16 family;
	__u16 protocol;
	__u16 remote_port; /* host order */
	__u16 local_port;
	__u8 remote[16];
	__u8 local[16];
	__u32 path_len; /* bytes of path used, with a leading NUL for an abstract name */
	__u8 path[108];
};
_Static_assert(sizeof(struct aw_connect) == 224, "aw_connect");

/* One IP packet, or a piece of a large one; followed by captured bytes of payload. */
struct aw_wire {
	struct aw_header h;
	__u64 cookie;
	__u32 seq; /* of the first payload byte */
	__u32 ack;
	__u32 payload; /* bytes of payload of this piece on the wire */
	__u32 captured;
	__u8 remote[16];
	__u8 local[16];
	__u16 remote_port;
	__u16 local_port;
	__u8 family;
	__u8 protocol;
	__u8 tcp_flags;
	__u8 direction;
};
_Static_assert(sizeof(struct aw_wire) == 104, "aw_wire");

/*
 * A run of DataRow or CopyData messages from a PostgreSQL server, which was stepped
 * over: length bytes from seq. Its first lead bytes end a message that began before
 * it, its last message goes on for rest bytes behind it. rows messages begin in it.
 * Behind it come partial_len bytes of a message's header, which are here.
 */
struct aw_rows {
	struct aw_header h;
	__u64 cookie;
	__u32 seq;
	__u32 length;
	__u32 lead;
	__u32 rest;
	__u32 rows;
	__u8 message; /* type byte: D or d */
	__u8 partial_len;
	__u8 partial[4];
	__u8 reserved[6];
};
_Static_assert(sizeof(struct aw_rows) == 80, "aw_rows");

struct aw_sock_end {
	struct aw_header h;
	__u64 cookie;
	__u32 protocol;
	__u32 reserved;
};
_Static_assert(sizeof(struct aw_sock_end) == 56, "aw_sock_end");

/* The first sight of a Unix socket. */
struct aw_unix_open {
	struct aw_header h;
	__u64 inode;
	__u64 cookie;
	__u32 peer_tgid; /* as the kernel keeps it for SO_PEERCRED */
	__u32 type; /* SOCK_STREAM, ... */
	__u32 path_len; /* of the peer's name; 0: it has none */
	__u8 path[108];
};
_Static_assert(sizeof(struct aw_unix_open) == 176, "aw_unix_open");

/*
 * A piece of one send or receive on a Unix socket (or AW_F_OUTSIDE); followed by
 * captured bytes. AW_UNIX_CALL: a send whose bytes are told of when they are read.
 */
struct aw_unix {
	struct aw_header h;
	__u64 inode;
	__u64 cookie;
	__u32 total; /* bytes of the whole call */
	__u32 offset; /* of this piece in the call */
	__u32 payload; /* bytes of this piece */
	__u32 captured;
	__u8 direction;
	__u8 by_reader; /* the bytes are those that the process at the other end got */
	__u16 reserved;
	__u32 position; /* by_reader, AW_UNIX_CALL: of the call in the stream, its low 32 bits */
};
_Static_assert(sizeof(struct aw_unix) == 80, "aw_unix");

/* h: the task that did it. */
struct aw_divergence {
	struct aw_header h;
	__u64 cookie;
	__u64 inode; /* of the socket; 0: it is not about one */
	__u32 technique; /* enum aw_technique */
	__u32 target; /* process reached into, 0: not known */
	__u16 family;
	__u8 reserved[6];
	char comm[16];
};
_Static_assert(sizeof(struct aw_divergence) == 88, "aw_divergence");

/* A piece of what an interpreter read as its input; followed by captured bytes. Of 0 bytes: the input has ended. */
struct aw_input {
	struct aw_header h;
	__u64 inode; /* of what it was read from */
	__u64 offset; /* in a file; 0 for others */
	__u32 total; /* bytes of this piece */
	__u32 captured; /* total, or 0 when omitted */
	__u8 source; /* enum aw_input_source */
	__u8 omitted; /* enum aw_omitted */
	__u8 reserved[6];
};
_Static_assert(sizeof(struct aw_input) == 72, "aw_input");

/*
 * A piece of the plaintext of one call into a TLS library; followed by captured bytes. Of
 * 0 bytes: the connection is now known to be on this socket, or the write call that reads
 * have overtaken took nothing. h.boottime: when the call began (AW_OUT), or when it ended.
 */
struct aw_tls {
	struct aw_header h;
	__u64 session; /* one value for each connection of a library */
	__u64 cookie; /* of the socket, 0 when the library has none of its own */
	__u64 position; /* of the call in the plaintext of this direction */
	__u64 writing; /* AW_IN: when a write call began that has not returned, 0: there is none */
	__u32 total; /* bytes of the whole call */
	__u32 offset; /* of this piece in the call */
	__u32 payload; /* bytes of this piece; with AW_F_SUPPRESSED of all calls since it was last told */
	__u32 captured;
	__u8 direction;
	__u8 reserved[7];
};
_Static_assert(sizeof(struct aw_tls) == 96, "aw_tls");

/* The beginning of what a library that has no socket of its own gives to be sent. */
struct aw_tls_record {
	struct aw_header h;
	__u64 session;
	__u32 total;
	__u32 captured;
	__u8 data[32];
};
_Static_assert(sizeof(struct aw_tls_record) == 88, "aw_tls_record");

struct aw_tls_end {
	struct aw_header h;
	__u64 session;
	__u64 position[2]; /* plaintext bytes out and in */
};
_Static_assert(sizeof(struct aw_tls_end) == 64, "aw_tls_end");

/* A file was mapped to be executed that nobody has looked into; followed by path_len bytes as in aw_exec. */
struct aw_mapped {
	struct aw_header h;
	__u64 inode;
	__u64 address; /* of the mapping; 0: it is the program itself */
	__u32 device; /* as in aw_exec */
	__u16 path_len;
	__u8 stopped; /* the process waits until somebody has */
	__u8 path_flags; /* 1: path cut at the limit */
	__u32 generation; /* of the inode */
	__u32 reserved;
};
_Static_assert(sizeof(struct aw_mapped) == 72, "aw_mapped");

/* Followed by path_len bytes. */
struct aw_cgroup {
	struct aw_header h; /* tgid: the process that was moved */
	__u64 id; /* the cgroup this is about */
	__u32 operation;
	__u32 path_len;
};
_Static_assert(sizeof(struct aw_cgroup) == 56, "aw_cgroup");

/* Per program and CPU. seen == submitted + the sum of lost, always. */
struct aw_counters {
	__u64 seen;
	__u64 submitted;
	__u64 lost[AW_LOST_COUNT];
	__u64 lost_bytes[AW_LOST_COUNT];
	__u64 held; /* packets refused and processes stopped: seen again later, not seen now */
	__u64 counted_bytes; /* of payload that was not copied because nobody reads it */
};
_Static_assert(sizeof(struct aw_counters) == 96, "aw_counters");

/* What is known of a loss: whose, where, why. */
struct aw_loss_key {
	__u64 cgroup; /* where the process came under watch; 0: not known */
	__u32 program; /* enum aw_program */
	__u32 cause; /* enum aw_lost */
};
_Static_assert(sizeof(struct aw_loss_key) == 16, "aw_loss_key");

/* Grows only, but for the times. */
struct aw_loss {
	__u64 events;
	__u64 bytes;
	__u64 first; /* boottime, ns */
	__u64 last;
};
_Static_assert(sizeof(struct aw_loss) == 32, "aw_loss");

#endif
