/* SPDX-License-Identifier: (MIT OR GPL-2.0-only) */
/*
 * The maps, pinned under their name here. A program that is compiled while they
 * are there uses those that are: so the probes can be replaced by newer ones that
 * go on with the same state and the same ring (agentwatch probes upgrade).
 */
#ifndef AGENTWATCH_MAPS_H
#define AGENTWATCH_MAPS_H

#include "abi.h"

/*
 * Watched processes at one time. The kernel's default pid_max on hosts without
 * systemd is 32768; a fork that finds the map full is counted as AW_LOST_MAP.
 */
#define MAX_TAGS 65536
/* Sockets of watched processes at one time; full: events lose their task, not their cgroup. */
#define MAX_SOCKETS 65536
/* connect calls in flight. */
#define MAX_CONNECTS 16384
/* Larger than any event: fixed part, two paths, a file name and 32 KiB of bytes. */
#define SCRATCH_BYTES 65536
#define RING_BYTES    ((u64)RING_PAGES * PAGE_SIZE)
/* Wake the reader when this part of the ring was written by one CPU since it last did. */
#define WAKE_BYTES (RING_BYTES / 8)
/* Cgroups with something in the ring or with a policy at one time. */
#define MAX_CGROUPS 16384

#define MAP(type, key, leaf, name, entries) \
	BPF_TABLE(type ":" PIN_DIR #name, key, leaf, name, entries)

/* BCC's own macro for a ring, which cannot be told where to pin it. */
#define RING(name, pages)                                                                      \
	struct name##_table_t {                                                                \
		int key;                                                                       \
		u32 leaf;                                                                      \
		int (*ringbuf_output)(void *, u64, u64);                                       \
		void *(*ringbuf_reserve)(u64);                                                 \
		void (*ringbuf_discard)(void *, u64);                                          \
		void (*ringbuf_submit)(void *, u64);                                           \
		u32 max_entries;                                                               \
	};                                                                                     \
	__attribute__((section("maps/ringbuf:" PIN_DIR #name))) struct name##_table_t name = { \
		.max_entries = (pages) * PAGE_SIZE                                             \
	}

/*
 * Slot -> the program of a hook on a (raw) tracepoint. What is attached there is
 * one line that calls the slot, and stays; the program in the slot can be replaced
 * between two events. Written by the loader. Cgroup hooks replace theirs by themselves.
 */
#define MAX_HOOKS 64
MAP("prog", u32, u32, raw_programs, MAX_HOOKS);
MAP("prog", u32, u32, tracepoint_programs, MAX_HOOKS);
MAP("prog", u32, u32, uprobe_programs, MAX_HOOKS);

/* Events. Written by every program, read by the recorder. Its size is the configuration's ring_bytes. */
RING(ring, RING_PAGES);

/* 0 -> ring: BCC has no word for bpf_ringbuf_query, which takes what a look-up here gives. Written by the loader. */
BPF_ARRAY_OF_MAPS(rings, "ring", 1);

/* enum aw_program -> its counters, per CPU. Written by every program, read by the recorder. */
MAP("percpu_array", u32, struct aw_counters, counters, AW_P_COUNT);

/* Whose events were lost, and when. Written by every program, read by the recorder. Full: the counters still know how many. */
MAP("hash", struct aw_loss_key, struct aw_loss, losses, MAX_CGROUPS);

/* What a cgroup has in the ring, bounded from above (has_room). */
struct share {
	u64 before; /* bytes it wrote before since */
	u64 after; /* bytes it wrote after it */
	u64 since; /* a position of the producers */
};

/* Cgroup -> share, while the ring is not nearly empty. Evicted: it begins anew, which lets it have a little more. */
MAP("lru_hash", u64, struct share, shares, MAX_CGROUPS);

#define OVERFLOW_HOLD 1

/* Cgroup -> OVERFLOW_HOLD. Written by agentwatch run and by the recorder, read when the ring has little room. */
MAP("hash", u64, u32, policies, MAX_CGROUPS);

/* tgid -> 1: stopped because the ring was half full. Written by hold_back, emptied by the recorder. */
MAP("hash", u32, u8, stopped, MAX_TAGS);

/* A watched process: where it came under watch, and whether what it reads are commands (input.c). */
struct tag {
	u64 cgroup;
	u64 input; /* address of the inode that was its standard input when the program began */
	u64 input_due; /* when its reads so far are paid for: boottime, ns */
	u32 reader; /* 0: not looked at since the exec, READS_COMMANDS, READS_DATA */
	u32 goroutines; /* it has made TLS calls from Go: whose call it is tells the goroutine, not the thread */
};

/* tgid -> tag. Written at fork, at cgroup attach, by the loader (what was there before); deleted at exit. */
MAP("hash", u32, struct tag, tags, MAX_TAGS);

/* Who last wrote on a socket. */
struct owner {
	u64 cgroup;
	u32 tgid;
	u32 tid;
};

/* Socket cookie -> owner. Written at connect and send, read by the packet programs; deleted at release. */
MAP("hash", u64, struct owner, owners, MAX_SOCKETS);

#define FLOW_COUNT 1
#define FLOW_ROWS  2
#define FLOW_TLS   3 /* ciphertext: what comes in is counted */

/* A packet of a followed connection that is being walked through (rows.c). */
struct walk {
	u64 at; /* where in the payload the next header is, or beyond its end */
	u64 run_at; /* where a run began that goes on */
	u64 cut_at; /* where the run ended that the packet began with */
	u32 rows;
	u32 cut_rows;
	u32 had; /* bytes of a header of the run in the packet before */
	u32 cut_partial; /* the same, of the header that ended the run */
	u8 kind; /* of the run at this place: D, d, or 0: none */
	u8 inherited; /* the packet began in a run */
	u8 cut; /* which has ended */
	u8 reserved[5];
};

/* What is known of a TCP connection whose payload need not be copied. */
struct flow {
	u32 mode; /* FLOW_ */
	u32 searches; /* left, for a row in the packets of a result that is not followed any more */
	u64 taken; /* a lock that is tried */
	/* FLOW_COUNT and FLOW_TLS, by direction: bytes since it was last told of, and when that was */
	u64 untold[2];
	u64 told_at[2];
	/* FLOW_ROWS, of what comes in: */
	u32 from; /* if following: everything from this sequence number on was told or is in the run, */
	u32 next; /* up to this one */
	u32 top; /* end of what was told or stepped over, in whatever order it came, if met */
	u32 start; /* of the run; its bytes so far, and its messages */
	u32 length;
	u32 rows;
	u32 lead; /* bytes at its start of a message that was told of before */
	u32 rest; /* bytes of a message that are still to come */
	u8 met;
	u8 following;
	u8 kind; /* of the run: D, d, or 0: none */
	u8 message; /* of the last run: what is searched for */
	u8 wanted; /* somebody wants the run to be told when the flow is left */
	u8 partial_len;
	u8 partial[4]; /* a header's first bytes, at the end of the last packet */
	u64 walker; /* the packet that walk is about */
	struct walk walk;
};

/*
 * Socket cookie -> flow. FLOW_ROWS: written by egress, or by the recorder for a connection that it joined;
 * the others: by the recorder. Deleted by the recorder when the connection ended. Full: everything is copied.
 */
MAP("hash", u64, struct flow, flows, MAX_SOCKETS);

/* Socket inode -> 1: nobody reads what this Unix socket carries, it is counted. Written and deleted by the recorder. */
MAP("hash", u64, u8, unix_flows, MAX_SOCKETS);

/* 0 -> on_rows; 0 -> on_search. Written by the loader. */
MAP("prog", u32, u32, followers, 1);
MAP("prog", u32, u32, searchers, 1);

/* A connect system call that has not returned. */
struct connecting {
	u64 start;
	u64 address; /* of the sockaddr in the process */
	u64 cookie; /* set by the cgroup hook, 0 before */
	s32 fd;
	u32 reserved;
};

/* pid_tgid -> connecting. Written at the call's entry, deleted at its exit. */
MAP("hash", u64, struct connecting, connecting, MAX_CONNECTS);

/* A connection that is being made, which may outlive its system call. */
struct pending {
	struct aw_connect event;
	u64 start;
	s32 result;
	u8 done; /* the state machine has answered, the call has not returned */
	u8 returned; /* the call has returned EINPROGRESS */
	u8 reserved[2];
};

/* Socket cookie -> pending. Written by the connect hooks, deleted when the result is known or at release. */
MAP("hash", u64, struct pending, pending, MAX_CONNECTS);

/* A Unix socket of a watched process, or an IP socket from outside the watch. */
struct unix_socket {
	u64 cgroup;
	u32 tgid; /* who wrote last */
	u32 tid;
	u64 sent; /* bytes that were sent, if by_reader */
	u64 read; /* bytes of these that the other end has read */
	u32 by_reader; /* its bytes are copied when the other end has read them */
	u32 reserved;
};

/*
 * Socket inode -> unix_socket. Written by connect, by_reader, or at the first call that is met. Evicted: it is met
 * again and its bytes are taken from the calls; what was on its way is a gap.
 */
MAP("lru_hash", u64, struct unix_socket, unix_sockets, MAX_SOCKETS);

/* The other end of a Unix connection that a watched process made. */
struct reader {
	u64 inode; /* of the watched socket */
	u64 client; /* its struct sock, and the process that connected: both must still be what the other end has */
	u32 tgid;
	u32 reserved;
};

/* struct sock of the other end -> reader. Written by connect. Evicted: what is read there is a gap. */
MAP("lru_hash", u64, struct reader, readers, MAX_SOCKETS);

struct udp_peer {
	u64 cookie;
	u8 address[16];
	u32 port;
	u32 family;
};

/* Peers of unconnected UDP sockets that were reported. Evicted: reported again. */
MAP("lru_hash", struct udp_peer, u8, udp_peers, MAX_CONNECTS);

/* A divergence that was told. */
struct diverged {
	u64 identity; /* inode of the socket, or the process reached into */
	u32 tgid;
	u32 technique;
};

/* diverged -> 1. Evicted: told again. */
MAP("lru_hash", struct diverged, u8, diverged, MAX_CONNECTS);

/* pid_tgid -> messages done in a running sendmmsg or recvmmsg; deleted at the call's exit. */
MAP("hash", u64, u32, mmsg_index, MAX_CONNECTS);

/*
 * CPU -> where an event of unknown length is put together. Tracepoint programs
 * run with preemption off and do not nest, so a slot has one user; the packet
 * programs can be interrupted and reserve in the ring instead.
 */
struct scratch {
	u8 data[SCRATCH_BYTES];
};
MAP("array", u32, struct scratch, scratch, CPUS);

/* Calls into TLS libraries at one time. */
#define MAX_TLS_CALLS 16384
/* Connections of TLS libraries at one time. */
#define MAX_TLS_SESSIONS 65536
/* Files that were mapped to be executed, or were looked into when the probes were loaded. */
#define MAX_FILES 65536

/* Whose call it is. */
struct tls_caller {
	u64 context; /* thread; of Go the address of the goroutine, which changes threads */
	u32 tgid;
	u32 reserved;
};

/* A call into a TLS library that has not returned, or whose bytes are being copied. */
struct tls_call {
	u64 connection; /* address of the library's object */
	u64 buffer;
	u64 length; /* of the buffer */
	u64 count_at; /* where the number of bytes is put, 0: it is returned */
	u64 stack; /* pointer at the entry */
	u64 entered; /* boottime, ns */
	u64 socket; /* cookie of the one that the call has used, 0: none */
	u64 what; /* enum aw_call */
	/* when it has returned: */
	u64 session;
	u64 cookie;
	u64 position;
	u64 writing;
	u64 total;
	u64 done;
};

/*
 * Caller -> call. Written at the call's entry, deleted at its return and when the thread ends; of a goroutine nobody
 * tells that. Evicted: the call is not seen, and its bytes on the wire are a surplus.
 */
MAP("lru_hash", struct tls_caller, struct tls_call, tls_calls, MAX_TLS_CALLS);

struct tls_connection {
	u64 address;
	u32 tgid;
	u32 reserved;
};

struct tls_session {
	u64 id;
	u64 cookie; /* of the socket that calls on it were seen to use, 0: none so far */
	u64 position[2]; /* bytes of plaintext, by direction */
	u64 writing; /* when the write call began that is running, 0: there is none */
	u64 overtaken; /* the last of these that a read has ended in the time of */
	u64 untold[2]; /* of these, counted and not told yet; and when that was last done */
	u64 told_at[2];
};

/* A library's connection -> session. Written at its first call, deleted when it is freed. Evicted: it begins anew. */
MAP("lru_hash", struct tls_connection, struct tls_session, tls_sessions, MAX_TLS_SESSIONS);

#define TLS_COUNTED 1 /* nobody reads its plaintext */
#define TLS_TIED    2 /* it is known on which socket it is */

/* Session -> TLS_ flags. Written by the recorder. Evicted: more is told than needed. */
MAP("lru_hash", u64, u32, tls_verdicts, MAX_TLS_SESSIONS);

/* A file: by the inode that the kernel has. */
struct file_key {
	u64 inode;
	u32 device;
	u32 generation; /* which file it is that has had this number */
};

/* File -> 1: somebody has looked into it, or will. Written by library.c and by who looks. Evicted: told again. */
MAP("lru_hash", struct file_key, u8, files, MAX_FILES);

#define SETTING_HOLD 1 /* a process waits until the files that it maps were looked into */

/* 0 -> SETTING_ flags. Written by the recorder. */
MAP("array", u32, u32, settings, 1);

/* tgid -> when it was stopped because of a file (boottime, ns). Emptied by the recorder. */
MAP("hash", u32, u64, waiting, MAX_TAGS);

/* 0 -> on_tls_more. Written by the loader. */
MAP("prog", u32, u32, tls_continuation, 1);

/* 0 -> on_more_pieces: the next buffers of a Unix socket call. Written by the loader. */
MAP("prog", u32, u32, continuation, 1);

/* Bytes that this CPU wrote since it last woke the reader. */
MAP("percpu_array", u32, u64, unannounced, 1);

/* Never used at run time: its value puts every ABI struct and enum into the program's BTF. */
union abi_witness {
	struct aw_header header;
	struct aw_fork fork;
	struct aw_exec exec;
	struct aw_argv argv;
	struct aw_exec_failed exec_failed;
	struct aw_exit exit;
	struct aw_connect connect;
	struct aw_wire wire;
	struct aw_rows rows;
	struct aw_sock_end sock_end;
	struct aw_unix_open unix_open;
	struct aw_unix unix_call;
	struct aw_divergence divergence;
	struct aw_input input;
	struct aw_tls tls;
	struct aw_tls_record tls_record;
	struct aw_tls_end tls_end;
	struct aw_mapped mapped;
	struct aw_cgroup cgroup;
	struct aw_counters counters;
	struct aw_loss_key loss_key;
	struct aw_loss loss;
	enum aw_event_kind kind;
	enum aw_program program;
	enum aw_lost lost;
	enum aw_direction direction;
	enum aw_flag flag;
	enum aw_cgroup_operation operation;
	enum aw_technique technique;
	enum aw_call call;
	enum aw_input_source source;
	enum aw_omitted omitted;
	u8 version[ABI_VERSION];
};
MAP("array", u32, union abi_witness, abi, 1);

#endif
