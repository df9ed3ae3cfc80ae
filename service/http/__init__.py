"""The pages that the server serves over HTTP, from a thread of their own."""
