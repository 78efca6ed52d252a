"""Limits of this process: as many descriptors as it may have."""

import resource

from attrs import frozen


@frozen
class OpenFilesLimit:
    """How many descriptors this process may have open."""

    before: int
    """The soft limit found."""
    after: int
    """The soft limit now in force."""


def raise_open_files_limit() -> OpenFilesLimit:
    """Raise the soft limit of open files to the hard one, which needs no privilege and is never lowered.

    A sandbox may forbid it: then ``after`` equals ``before``, and it is for the caller to say so.

    Source: getrlimit(2), RLIMIT_NOFILE.
    """
    before, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if before != hard:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        except (OSError, ValueError):
            return OpenFilesLimit(before, before)
    return OpenFilesLimit(before, hard)
