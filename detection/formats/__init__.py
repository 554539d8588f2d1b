"""Log formats: bytes of a line to the columns that detection works on. `kinds` is the way in."""
