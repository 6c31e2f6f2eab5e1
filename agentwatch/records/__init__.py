"""What is in a record and how it is encoded."""
