"""The server application; run with `kvdepot serve`."""
