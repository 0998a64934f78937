"""What installed entry points name: the command line and the pytest plugin.

The packages `scheduler` and `workers` have names that others take, too. This one has a name of its own, so
that an entry point can say that one of them is somebody else's before it imports it.
"""
