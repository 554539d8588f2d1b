"""Causes: a number for what an alert is about, and the list of causes known to be normal or an anomaly."""
