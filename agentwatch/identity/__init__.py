"""Who an event belongs to: agents, sessions, cgroups, processes."""
