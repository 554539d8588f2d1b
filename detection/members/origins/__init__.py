"""What each client did lately, counted over log time; scans, floods and brute force show here."""
