"""The activity of each client, counted over log time: detects scans, floods and brute force."""
