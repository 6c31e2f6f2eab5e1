/* SPDX-License-Identifier: (MIT OR GPL-2.0-only) */
/* BCC carries the kernel's uapi header inside itself. */
#include <bcc/bpf.h>
