"""Log formats: from the bytes of lines to the columns that detection works on. The entry point is `kinds`."""
