"""Protocol decoders: sans-IO state machines from ordered bytes to messages."""
