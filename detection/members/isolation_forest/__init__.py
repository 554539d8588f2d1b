"""The Isolation Forest over the other members' scores: the member, its scoring, its fitting."""
