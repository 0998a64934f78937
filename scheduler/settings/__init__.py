"""Settings of a worker process and of clients. Nothing is read at import: call `load_settings()`."""

from scheduler.settings.endpoint import BreakerSettings, EndpointSettings, FromVariable, RateSettings
from scheduler.settings.loading import CONFIG_VARIABLE, config_path, load_settings
from scheduler.settings.route import (
    STAGES,
    AssembleSettings,
    BatchSettings,
    Example,
    PostSettings,
    RagSettings,
    RouteSettings,
)
from scheduler.settings.settings import EMBEDDED, ENV_PREFIX, Settings

__all__ = [
    "CONFIG_VARIABLE",
    "EMBEDDED",
    "ENV_PREFIX",
    "STAGES",
    "AssembleSettings",
    "BatchSettings",
    "BreakerSettings",
    "EndpointSettings",
    "Example",
    "FromVariable",
    "PostSettings",
    "RagSettings",
    "RateSettings",
    "RouteSettings",
    "Settings",
    "config_path",
    "load_settings",
]
