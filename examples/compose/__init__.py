"""A depot with Prometheus, Grafana and engines in containers."""
