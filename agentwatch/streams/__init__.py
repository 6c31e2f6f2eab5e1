"""From captured pieces of connections to ordered bytes with declared gaps."""
