"""Metrics and traces. Each loads its library only if the settings ask for it."""
