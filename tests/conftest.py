from hypothesis import settings

# No test fails by the clock: an example may be the first to compile, on a machine that is busy.
settings.register_profile("any machine", deadline=None)
settings.load_profile("any machine")
