"""Moves bytes: Linux sockets in Trio. The pump, stream flows, datagram flows."""
