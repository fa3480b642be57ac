"""What runs where the data lives; knows no HTTP, and never imports `client` or `web`."""
