"""The server application; run with `python -m service`."""

__version__ = "0.1.0"
