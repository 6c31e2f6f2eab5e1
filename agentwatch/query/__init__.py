"""Questions of a responder, answered from the index and the log."""
