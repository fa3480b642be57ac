"""The test kit: property tests for mappings and merges, histories, stand-ins for clocks and transports."""
