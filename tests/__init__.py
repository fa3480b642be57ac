"""The tests of cloudstore-mapping."""
