"""The trio actors and the channels between them; the only async code besides the admin API."""
