"""The off-host anchor: what a host's log was at each moment, kept on another host, and what keeps sending it there."""
