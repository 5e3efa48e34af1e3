"""Choosing an endpoint for a new flow: one way a file, each told the usable endpoints."""
