"""The ensemble's members: one file or package each, two interfaces (`member`), one line each in `registry`."""
