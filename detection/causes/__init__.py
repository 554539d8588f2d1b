"""Causes: what an alert is about, as a number, and which of them are known to be normal."""
