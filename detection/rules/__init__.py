"""Rules: named patterns of attacks over decoded fields, active from the first line on."""
