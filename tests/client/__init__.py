"""Tests of the client, a file or more per module."""
