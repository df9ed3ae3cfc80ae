"""The Grafana dashboard of the chart, built with Grafana's SDK."""
