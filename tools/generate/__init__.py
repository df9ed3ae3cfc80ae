"""Generates what the project derives from its own code: reference pages, the chart's files, the dashboard."""
