"""The process: entry points, settings, wiring and stop order, admin API, trainer entry, vigilctl."""
