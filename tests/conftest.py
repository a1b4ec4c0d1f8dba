"""Settings of the test tools that have no place in pyproject.toml."""

from hypothesis import settings

# A machine under load is slow, not wrong: how long an example takes decides nothing here.
settings.register_profile("house", deadline=None)
settings.load_profile("house")
