/* SPDX-License-Identifier: (MIT OR GPL-2.0-only) */
/* What BCC's own headers ask of a kernel tree, and nothing that describes a kernel. */
#ifndef AGENTWATCH_KCONFIG_H
#define AGENTWATCH_KCONFIG_H
#define CONFIG_BPF_SYSCALL 1
#endif
