"""Reads a queue for people and their tools, in bounded steps; changes nothing. Raises errors of redis-py."""
