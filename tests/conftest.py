"""Settings of all tests."""

import signal

from hypothesis import settings

# A shell lets commands in the background ignore Ctrl-C, and their children inherit that: tests that interrupt a child
# mean one that was started in the foreground.
signal.signal(signal.SIGINT, signal.default_int_handler)

# The first derivative a process takes costs half a second of imports: a deadline per example would measure that.
settings.register_profile("no deadline", deadline=None)
settings.load_profile("no deadline")
