"""The test kit: property tests for mappings and merges, histories, stand-ins for clocks and transports."""

from cloudstore_mapping.testing.exact import same
from cloudstore_mapping.testing.machine import mapping_machine

__all__ = ["mapping_machine", "same"]
