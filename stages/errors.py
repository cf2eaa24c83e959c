"""What a stage may raise.

StageError
├── WeightsError   a weights file is unreadable, incomplete, or belongs to another model
│   ├── FormatError    a file's bytes do not follow its own format
│   └── FileAbsent     a file of the model is not there
├── ConfigError    an option or a value in a configuration file makes no sense
└── ClockError     a packet does not continue where the last one ended
"""


class StageError(Exception):
    """Root of everything raised below the pipeline and above the kernels."""


class WeightsError(StageError):
    """A weights file is unreadable, incomplete, or belongs to another model."""


class FormatError(WeightsError):
    """A file's bytes do not follow its own format."""


class FileAbsent(WeightsError):
    """A file of the model is not there; fetch it, or name another place."""


class ConfigError(StageError):
    """An option or a configuration value makes no sense."""


class ClockError(StageError):
    """A packet does not continue where the last one ended."""
