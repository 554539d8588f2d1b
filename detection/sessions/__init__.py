"""From frames to sessions: lines are read, given to open sessions by key, and cut by silence of the log clock."""
