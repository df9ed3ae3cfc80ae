"""Metrics: definitions, instruments, snapshots, and their export to Prometheus and OTLP."""
