"""The targets of installed entry points: the command line and the pytest plugin.

Other packages may also be called `scheduler` or `workers`. This package has a name of its own, so that an
entry point can report such a clash before it imports one of them.
"""
