"""All exception classes of the package.

Each one exists because some ``except`` needs it. The text of an exception is one sentence for the user: what
failed, where, and what to do. Any other exception that leaves this package is a bug.
"""

from typing import Self


class UserspaceProxyError(Exception):
    """The base of all; it says nothing itself and so refuses to be raised."""

    def __new__(cls, *args: object) -> Self:
        """Refuse the abstract base."""
        if cls is UserspaceProxyError:
            raise TypeError("raise a subclass of UserspaceProxyError")
        return super().__new__(cls, *args)


class ConfigError(UserspaceProxyError):
    """A setting is unusable; raised by ``config``, ``cli`` and whoever first looks at what a setting names.

    The process prints the sentence and exits with status 3.
    """


class SteeringError(UserspaceProxyError):
    """Steering could not be applied; raised by ``steering``, retried by the reconcile loop, health degraded."""


class ListenError(UserspaceProxyError):
    """One listening socket cannot be opened; raised by ``dataplane.sockets``.

    Only the Frontends of that Listener fail; the reconcile loop retries.
    """


class ManifestError(UserspaceProxyError):
    """A manifest, or one object in it, cannot be read; raised by the readers of YAML and JSON in ``sources``.

    It becomes a Problem.
    """

    def __init__(self, text: str, line: int = 0, column: int = 0) -> None:
        super().__init__(text)
        self.line = line
        """Counted from 1; 0: not known."""
        self.column = column
        """Counted from 1; 0: not known."""


class ApiError(UserspaceProxyError):
    """A request to the API server failed; raised by ``sources.api_http`` and ``sources.api_messages``.

    A watch tries again after a while, and what is served stays; a single request ends with the sentence.
    """

    def __init__(self, text: str, reason: str, retry_after_s: float = 0.0) -> None:
        super().__init__(text)
        self.reason = reason
        """What kind of failure it is, one of a few fixed words: for metrics and for ``except``."""
        self.retry_after_s = retry_after_s
        """Seconds for which the server asked to be left alone."""


class WorkerError(UserspaceProxyError):
    """A worker process says what none would say that is what it was; raised by ``control.worker_*``.

    It is killed and replaced.
    """


class DemoError(UserspaceProxyError):
    """The demonstration cannot go on, for a reason outside of it; raised by ``demo``.

    The process takes down what it has started, prints the sentence and exits with status 1.
    """
