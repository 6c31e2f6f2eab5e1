"""What the command line asks the running recorder to write down: who read the log, which sessions are held.

``client`` asks; ``server`` hears it, ``desk`` has it written and answers when it is durable. ``wire`` is what they say.
"""
