"""The admin API: a quart-trio application over `daemon.control.control_interface.Control`, and the page it serves."""
