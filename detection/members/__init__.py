"""The ensemble's members: a file or package each, two interfaces (`member_interfaces`), a line each in `registry`."""
