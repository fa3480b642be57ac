"""Tests of the mapping over all transports."""
