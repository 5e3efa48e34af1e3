"""The stage of the end-to-end tests, for those with a real Prometheus."""

from tests.e2e.conftest import stage

__all__ = ["stage"]
