"""Errors that reach the user: each says what was got, what was expected and how to mend it.

The exit code of the process is the error's `exit_code` (design: 0 done, 2, 3, 4, 75).
"""

from enum import IntEnum
from typing import ClassVar


class ExitCode(IntEnum):
    DONE = 0
    USER = 2  # config or input
    DAMAGED = 3  # an artifact on disk is not what was written
    STOPPED = 4  # training stopped by its guards
    INTERRUPTED = 75  # interrupted but saved: run the same command again (Slurm requeues on it)


class TptError(Exception):
    """A problem told in one line: `where: problem, got X, expected Y; fix`."""

    exit_code: ClassVar[ExitCode] = ExitCode.USER

    def __init__(
        self, problem: str, *, got: object = None, expected: object = None, fix: str | None = None
    ) -> None:
        self.problem, self.got, self.expected, self.fix = problem, got, expected, fix
        parts = [problem]
        if got is not None:
            parts.append(f"got {got}")
        if expected is not None:
            parts.append(f"expected {expected}")
        super().__init__(", ".join(parts) + (f"; {fix}" if fix else ""))


class ConfigError(TptError):
    """A config key, or a combination of keys, that cannot work."""


class InputError(TptError):
    """An input file or argument that is missing or is not what the command takes."""


class DamagedError(TptError):
    """An artifact whose bytes are not those that its manifest promises."""

    exit_code = ExitCode.DAMAGED


class StoppedError(TptError):
    """Training stopped by its own guards, for example a loss that is no longer finite."""

    exit_code = ExitCode.STOPPED


class InterruptedRun(TptError):
    """Stopped by a signal after saving; the same command continues."""

    exit_code = ExitCode.INTERRUPTED
