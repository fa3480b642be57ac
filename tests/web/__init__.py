"""Tests of the HTTP server, the API and the dashboard."""
