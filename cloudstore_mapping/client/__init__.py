"""Client side: the mapping, its requests and transports; imports nothing of the service."""
