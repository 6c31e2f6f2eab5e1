/* SPDX-License-Identifier: (MIT OR GPL-2.0-only) */
/*
 * The maps. All are pinned by the loader under their name here.
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

/* Events. Written by every program, read by the recorder. Its size is the configuration's ring_bytes. */
BPF_RINGBUF_OUTPUT(ring, RING_PAGES);

/* 0 -> ring: BCC has no word for bpf_ringbuf_query, which takes what a look-up here gives. Written by the loader. */
BPF_ARRAY_OF_MAPS(rings, "ring", 1);

/* enum aw_program -> its counters, per CPU. Written by every program, read by the recorder. */
BPF_PERCPU_ARRAY(counters, struct aw_counters, AW_P_COUNT);

/* Whose events were lost, and when. Written by every program, read by the recorder. Full: the counters still know how many. */
BPF_TABLE("hash", struct aw_loss_key, struct aw_loss, losses, MAX_CGROUPS);

/* What a cgroup has in the ring, bounded from above (has_room). */
struct share {
	u64 before; /* bytes it wrote before since */
	u64 after; /* bytes it wrote after it */
	u64 since; /* a position of the producers */
};

/* Cgroup -> share, while the ring is not nearly empty. Evicted: it begins anew, which lets it have a little more. */
BPF_TABLE("lru_hash", u64, struct share, shares, MAX_CGROUPS);

#define OVERFLOW_HOLD 1

/* Cgroup -> OVERFLOW_HOLD. Written by agentwatch run and by the recorder, read when the ring has little room. */
BPF_TABLE("hash", u64, u32, policies, MAX_CGROUPS);

/* tgid -> 1: stopped because the ring was half full. Written by hold_back, emptied by the recorder. */
BPF_TABLE("hash", u32, u8, stopped, MAX_TAGS);

/* A watched process: where it came under watch. */
struct tag {
	u64 cgroup;
};

/* tgid -> tag. Written at fork, at cgroup attach, by the loader (what was there before); deleted at exit. */
BPF_TABLE("hash", u32, struct tag, tags, MAX_TAGS);

/* Who last wrote on a socket. */
struct owner {
	u64 cgroup;
	u32 tgid;
	u32 tid;
};

/* Socket cookie -> owner. Written at connect and send, read by the packet programs; deleted at release. */
BPF_TABLE("hash", u64, struct owner, owners, MAX_SOCKETS);

/* A connect system call that has not returned. */
struct connecting {
	u64 start;
	u64 address; /* of the sockaddr in the process */
	u64 cookie; /* set by the cgroup hook, 0 before */
	s32 fd;
	u32 reserved;
};

/* pid_tgid -> connecting. Written at the call's entry, deleted at its exit. */
BPF_TABLE("hash", u64, struct connecting, connecting, MAX_CONNECTS);

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
BPF_TABLE("hash", u64, struct pending, pending, MAX_CONNECTS);

/* Socket inode -> 1: its AW_UNIX_OPEN was sent. Evicted: it is sent again, which is harmless. */
BPF_TABLE("lru_hash", u64, u8, unix_seen, MAX_SOCKETS);

struct udp_peer {
	u64 cookie;
	u8 address[16];
	u32 port;
	u32 family;
};

/* Peers of unconnected UDP sockets that were reported. Evicted: reported again. */
BPF_TABLE("lru_hash", struct udp_peer, u8, udp_peers, MAX_CONNECTS);

/* pid_tgid -> messages done in a running sendmmsg or recvmmsg; deleted at the call's exit. */
BPF_TABLE("hash", u64, u32, mmsg_index, MAX_CONNECTS);

/*
 * CPU -> where an event of unknown length is put together. Tracepoint programs
 * run with preemption off and do not nest, so a slot has one user; the packet
 * programs can be interrupted and reserve in the ring instead.
 */
struct scratch {
	u8 data[SCRATCH_BYTES];
};
BPF_TABLE("array", u32, struct scratch, scratch, CPUS);

/* 0 -> on_more_pieces: the next buffers of a Unix socket call. Written by the loader. */
BPF_PROG_ARRAY(continuation, 1);

/* Bytes that this CPU wrote since it last woke the reader. */
BPF_PERCPU_ARRAY(unannounced, u64, 1);

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
	struct aw_sock_end sock_end;
	struct aw_unix_open unix_open;
	struct aw_unix unix_call;
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
	u8 version[ABI_VERSION];
};
BPF_TABLE("array", u32, union abi_witness, abi, 1);

#endif
