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
