"""agentwatch: a record of what an AI agent did, kept by the kernel's witness and not by the agent."""

__version__ = "0.1.0"
