"""What runs in the user's program; never imports `service` or `web`."""
