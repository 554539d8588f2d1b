"""The ensemble's members: one file each, one interface (`member.Member`), one line each in `registry`."""
