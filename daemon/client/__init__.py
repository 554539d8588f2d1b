"""The parts of vigilctl: requests to the admin API, sending log files, commands, and their output as text."""
