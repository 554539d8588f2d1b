"""For all tests."""

from hypothesis import settings

# An example that takes long says that the machine is busy. What hangs is ended by pytest-timeout.
settings.register_profile("patient", deadline=None)
settings.load_profile("patient")
