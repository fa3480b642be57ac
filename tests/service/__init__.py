"""Tests of the service: accounts, operations, quotas, media and security."""
