"""Verdicts on lines and sessions: records, incidents, explanations, and answers to queries."""
