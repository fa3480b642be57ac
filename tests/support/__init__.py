"""Helpers of the tests: fakes and fixtures."""
