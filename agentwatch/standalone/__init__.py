"""Programs of one file each, which an auditor takes to a machine that has no agentwatch."""
