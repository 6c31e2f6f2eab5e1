/* SPDX-License-Identifier: (MIT OR GPL-2.0-only) */
/*
 * The path of a file, from the kernel's dentries: what the file is called, whatever
 * the process that uses it says.
 */
#ifndef AGENTWATCH_PATH_H
#define AGENTWATCH_PATH_H

#include "sock.h"

#define PATH_COMPONENTS 128
#define NAME_BYTES	256 /* NAME_MAX and NUL */
#define PATH_BYTES	4096

/*
 * Write the names from a dentry up to the root of the namespace into
 * data[offset...], leaf first, each ended by NUL. Returns the offset after them;
 * *cut is set to bit when something did not fit.
 */
static inline __attribute__((always_inline)) u64 put_path(struct scratch *s, u64 offset, void *path,
							  u16 *cut, u16 bit)
{
	u64 limit = offset + PATH_BYTES - NAME_BYTES;
	void *dentry = NULL;
	void *mnt = NULL;
	int i;

	KREAD(dentry, path, OFF(path, dentry));
	KREAD(mnt, path, OFF(path, mnt));
	for (i = 0; i < PATH_COMPONENTS; i++) {
		void *root = NULL;
		void *parent = NULL;
		void *name = NULL;
		long n;

		KREAD(root, mnt, OFF(vfsmount, mnt_root));
		if (dentry == root) {
			void *mount = mnt - OFF(mount, mnt);
			void *up = NULL;

			KREAD(up, mount, OFF(mount, mnt_parent));
			if (up == mount || !up)
				return offset;
			KREAD(dentry, mount, OFF(mount, mnt_mountpoint));
			mnt = up + OFF(mount, mnt);
			continue;
		}
		KREAD(parent, dentry, OFF(dentry, d_parent));
		if (parent == dentry || !parent)
			return offset; /* a file system that is mounted nowhere, as a memfd's */
		if (offset > limit)
			break;
		KREAD(name, dentry, OFF(dentry, d_name) + OFF(qstr, name));
		KEEP_BOUND(offset);
		if (offset >= SCRATCH_BYTES / 4)
			break;
		n = bpf_probe_read_kernel_str(s->data + offset, NAME_BYTES, name);
		if (n <= 0 || n > NAME_BYTES)
			break;
		offset += n;
		dentry = parent;
	}
	*cut |= bit;
	return offset;
}

#endif
