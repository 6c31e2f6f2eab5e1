/* SPDX-License-Identifier: (MIT OR GPL-2.0-only) */
#ifndef AGENTWATCH_PAGE_H
#define AGENTWATCH_PAGE_H
/* BPF_RINGBUF_OUTPUT multiplies by it; the loader passes the host's own value. */
#ifndef PAGE_SIZE
#define PAGE_SIZE 4096
#endif
#endif
