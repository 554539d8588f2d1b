"""The admin API: a quart-trio application over `daemon.control.interface.Control`, and the page it serves."""
