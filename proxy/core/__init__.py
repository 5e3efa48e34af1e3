"""Decides and counts. Pure: no async, no sockets, no clock, no logging; time is an argument."""
