"""Spans: how they are made of events, and where they are sent."""
