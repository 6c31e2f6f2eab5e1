"""From pinned BPF objects to events in user space; only loader.py imports bcc."""
