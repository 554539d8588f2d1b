"""Pure detection: bytes in, verdicts out. No trio, no files, no clock, no global randomness."""
