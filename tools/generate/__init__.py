"""Generates files from the project's code: reference pages, files of the chart, the dashboard."""
