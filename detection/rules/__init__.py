"""Rules: named attack patterns over decoded fields, active from the first line."""
