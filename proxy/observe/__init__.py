"""Tells: metrics, the admin API, logs. Only this layer imports h11 and prometheus_client."""
