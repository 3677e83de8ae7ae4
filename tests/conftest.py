from hypothesis import HealthCheck, settings

# No test fails by the clock: an example may be the first to compile, on a machine that is busy.
settings.register_profile(
    "any machine", deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("any machine")
