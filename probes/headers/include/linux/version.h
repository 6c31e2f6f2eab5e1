/* SPDX-License-Identifier: (MIT OR GPL-2.0-only) */
/* No probe looks at a version; BCC's headers want one that has everything they define. */
#ifndef AGENTWATCH_VERSION_H
#define AGENTWATCH_VERSION_H
#define KERNEL_VERSION(a, b, c) (((a) << 16) + ((b) << 8) + (c))
#ifndef LINUX_VERSION_CODE
#define LINUX_VERSION_CODE KERNEL_VERSION(5, 10, 0)
#endif
#endif
