"""What a statement does, from its text."""
