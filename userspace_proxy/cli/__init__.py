"""The command line.

Results go to stdout, the log to stderr. Exit status: 0 ok, 1 failure, 2 wrong usage, 3 something in the configuration
or the manifests is wrong. Entry point: ``main``.
"""

from userspace_proxy.cli.commands import main

__all__ = ["main"]
