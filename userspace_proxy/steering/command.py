"""Runs commands of the node that steering needs, and knows none of them. Entry point: ``run_command``."""

from collections.abc import Mapping
from pathlib import Path
from subprocess import CompletedProcess

import trio

from userspace_proxy.errors import SteeringError

NOT_PERMITTED = "not permitted (needs NET_ADMIN)"
"""What is to be said where rules or routes may not be changed, whichever way they are."""
COMMAND_TIMEOUT_S = 20.0
"""After this long a command is killed. Arbitrary: 10,000 rules take well below 1 s, iptables waits 5 s for its lock."""


async def run_command(argv: list[str], text: str = "", env: Mapping[str, str] | None = None) -> CompletedProcess[bytes]:
    """Run a command to its end, whatever its exit status.

    Args:
        argv: The command, by its path.
        text: Its input.
        env: Its environment; None: that of this process.

    Raises:
        SteeringError: it could not be run, or took too long; one clause says why.

    Cancellation: the command is ended.
    """
    name = Path(argv[0]).name
    try:
        with trio.fail_after(COMMAND_TIMEOUT_S):
            return await trio.run_process(
                argv, stdin=text.encode(), capture_stdout=True, capture_stderr=True, check=False, env=env
            )
    except trio.TooSlowError:
        raise SteeringError(f"{name} did not finish within {COMMAND_TIMEOUT_S:g} s and was ended") from None
    except OSError as error:
        raise SteeringError(f"{name} cannot be run: {error}") from error


def decode_output(output: bytes) -> str:
    """Return what a command has printed; what is no text in it does no harm."""
    return output.decode(errors="replace")
