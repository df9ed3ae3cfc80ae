"""The version of the package, of the server and of its chart."""

__version__ = "0.1.0"
