"""A router that sends each request to the depot with the longest prefix of it, as the depots' KV events tell."""
