"""What is generated of the chart; run with ``python -m helm.reference``."""
