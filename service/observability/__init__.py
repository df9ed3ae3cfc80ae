"""What watches the depot: subscribers as the settings ask for them, gauges, calls, the session log."""
