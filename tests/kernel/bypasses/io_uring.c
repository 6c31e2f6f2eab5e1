// SPDX-License-Identifier: Apache-2.0
/*
 * io_uring WAY TEXT: send a statement without a sending system call.
 *
 * send    IORING_OP_SEND, submitted by io_uring_enter
 * sqpoll  the kernel's own thread takes it from the ring: no system call at all
 * decoy   IORING_OP_SEND that becomes ready while this thread is in a write(2) of a harmless statement to a pipe,
 *         and so is done at the end of that call
 * worker  as decoy, by a worker thread that copies the registers of that write(2)
 */
#include "pg.h"
#include <linux/io_uring.h>
#include <poll.h>
#include <stdatomic.h>
#include <sys/mman.h>
#include <sys/syscall.h>

struct ring {
	int fd;
	unsigned *sq_head, *sq_tail, *sq_mask, *sq_flags, *array;
	unsigned *cq_head, *cq_tail, *cq_mask;
	struct io_uring_sqe *sqes;
	struct io_uring_cqe *cqes;
};

static void setup(struct ring *r, unsigned flags)
{
	struct io_uring_params p = { .flags = flags, .sq_thread_idle = 2000 };
	char *m;
	size_t size;

	r->fd = MUST(syscall(SYS_io_uring_setup, 8, &p));
	size = p.cq_off.cqes + p.cq_entries * sizeof(struct io_uring_cqe);
	m = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, r->fd, IORING_OFF_SQ_RING);
	MUST(m == MAP_FAILED ? -1 : 0);
	r->sqes = mmap(NULL, p.sq_entries * sizeof(struct io_uring_sqe), PROT_READ | PROT_WRITE,
		       MAP_SHARED | MAP_POPULATE, r->fd, IORING_OFF_SQES);
	r->sq_head = (unsigned *)(m + p.sq_off.head);
	r->sq_tail = (unsigned *)(m + p.sq_off.tail);
	r->sq_mask = (unsigned *)(m + p.sq_off.ring_mask);
	r->sq_flags = (unsigned *)(m + p.sq_off.flags);
	r->array = (unsigned *)(m + p.sq_off.array);
	r->cq_head = (unsigned *)(m + p.cq_off.head);
	r->cq_tail = (unsigned *)(m + p.cq_off.tail);
	r->cq_mask = (unsigned *)(m + p.cq_off.ring_mask);
	r->cqes = (struct io_uring_cqe *)(m + p.cq_off.cqes);
}

static struct io_uring_sqe *next(struct ring *r)
{
	unsigned tail = *r->sq_tail, index = tail & *r->sq_mask;
	struct io_uring_sqe *e = &r->sqes[index];

	memset(e, 0, sizeof(*e));
	r->array[index] = index;
	return e;
}

static void push(struct ring *r)
{
	atomic_store_explicit((_Atomic unsigned *)r->sq_tail, *r->sq_tail + 1, memory_order_release);
}

/* Wait for a completion by looking, not by a call. */
static int result(struct ring *r)
{
	unsigned head = *r->cq_head;
	int res;

	while (atomic_load_explicit((_Atomic unsigned *)r->cq_tail, memory_order_acquire) == head)
		usleep(1000);
	res = r->cqes[head & *r->cq_mask].res;
	atomic_store_explicit((_Atomic unsigned *)r->cq_head, head + 1, memory_order_release);
	if (res < 0) {
		fprintf(stderr, "io_uring: %s\n", strerror(-res));
		exit(2);
	}
	return res;
}

static void send_by(struct ring *r, int fd, void *data, size_t len, unsigned flags)
{
	struct io_uring_sqe *e = next(r);

	e->opcode = IORING_OP_SEND;
	e->flags = flags;
	e->fd = fd;
	e->addr = (uintptr_t)data;
	e->len = len;
	push(r);
}

int main(int argc, char **argv)
{
	const char *way = argv[1];
	static char frame[4096], decoy[4096];
	size_t len = pg_query(frame, argv[2]);
	struct ring r;
	int fd = pg_open(), pipes[2];

	(void)argc;
	if (!strcmp(way, "sqpoll")) {
		setup(&r, IORING_SETUP_SQPOLL);
		send_by(&r, fd, frame, len, 0);
		if (atomic_load((_Atomic unsigned *)r.sq_flags) & IORING_SQ_NEED_WAKEUP)
			MUST(syscall(SYS_io_uring_enter, r.fd, 0, 0, IORING_ENTER_SQ_WAKEUP, NULL, 0));
	} else if (!strcmp(way, "send")) {
		setup(&r, 0);
		send_by(&r, fd, frame, len, 0);
		MUST(syscall(SYS_io_uring_enter, r.fd, 1, 0, 0, NULL, 0));
	} else {
		struct io_uring_sqe *e;

		setup(&r, 0);
		MUST(pipe(pipes));
		memcpy(decoy, frame, len);
		pg_decoy(decoy, len);
		e = next(&r);
		e->opcode = IORING_OP_POLL_ADD;
		e->fd = pipes[0];
		e->poll32_events = POLLIN;
		e->flags = IOSQE_IO_LINK;
		push(&r);
		send_by(&r, fd, frame, len, !strcmp(way, "worker") ? IOSQE_ASYNC : 0);
		MUST(syscall(SYS_io_uring_enter, r.fd, 2, 0, 0, NULL, 0));
		MUST(write(pipes[1], decoy, len));
		result(&r);
	}
	if (result(&r) != (int)len)
		return 4;
	pg_ready(fd);
	pg_close(fd);
	return 0;
}
