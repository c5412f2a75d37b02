"""What the user has configured: finds and reads `replicate.yaml` and the `REPLICATE_*` variables.

Knows nothing of repositories or experiments, opens no network, and below the faces nothing else
reads the environment. A value is never silently ignored: what cannot be meant is a ConfigError that
says where it stands.
"""

from replicate.config.clouds import CloudSettings, cloud_settings
from replicate.config.file import (
    Compression,
    ConsoleExtent,
    Keep,
    parse_console,
    parse_keep,
    parse_size,
)
from replicate.config.loading import (
    DEFAULT_REPOSITORY,
    ENVIRONMENT,
    Config,
    Mode,
    find_project,
    load,
    rank,
    redaction,
)

__all__ = [
    "DEFAULT_REPOSITORY",
    "ENVIRONMENT",
    "CloudSettings",
    "Compression",
    "Config",
    "ConsoleExtent",
    "Keep",
    "Mode",
    "cloud_settings",
    "find_project",
    "load",
    "parse_console",
    "parse_keep",
    "parse_size",
    "rank",
    "redaction",
]
