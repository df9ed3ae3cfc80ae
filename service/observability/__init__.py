"""Subscribers, gauges and logs of the server, as the settings ask for them."""
