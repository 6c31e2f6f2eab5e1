"""The derived, rebuildable index of the log."""
