"""A `conftest.py` for the test files that pages show: fewer tries than a user's tests make."""

FEW_TRIES = """\
from hypothesis import HealthCheck, settings

settings.register_profile("few", max_examples=5, suppress_health_check=[HealthCheck.too_slow], database=None)
settings.load_profile("few")
"""
