"""Runs the house: listening sockets, names, signals, life and end."""
