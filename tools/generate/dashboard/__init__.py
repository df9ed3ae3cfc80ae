"""The Grafana dashboard of the chart, written down with Grafana's own builders."""
