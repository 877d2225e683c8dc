"""Settings of all tests."""

from hypothesis import settings

# The first derivative a process takes costs half a second of imports: a deadline per example would measure that.
settings.register_profile("no deadline", deadline=None)
settings.load_profile("no deadline")
