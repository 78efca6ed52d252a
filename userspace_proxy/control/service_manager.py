"""What a service manager is told: ready, stopping, and that the process is not stuck.

Does nothing where no manager asks for it. A ping says that the loop which also moves clients' bytes comes round; it
says nothing of the API server or of rules, since a restart would mend neither and would cost all connections.

Source: sd_notify(3), sd_watchdog_enabled(3). Entry point: ``ServiceManager``.
"""

import logging
import os
import socket
from collections.abc import Mapping

import trio

LOG = logging.getLogger(__name__)

_PINGS_PER_PERIOD = 2
"""As sd_watchdog_enabled(3) recommends."""


class ServiceManager:
    """The service manager that has started this process, if there is one."""

    def __init__(self, environ: Mapping[str, str]) -> None:
        """Look at the environment of the process; nothing is sent yet."""
        address = environ.get("NOTIFY_SOCKET", "")
        self._address = f"\0{address[1:]}" if address.startswith("@") else address
        is_for_us = environ.get("WATCHDOG_PID", str(os.getpid())) == str(os.getpid())
        period_us = environ.get("WATCHDOG_USEC", "") if is_for_us else ""
        self.ping_interval_s = int(period_us) / 1e6 / _PINGS_PER_PERIOD if period_us.isdecimal() else None
        """Seconds between two pings; None: it expects none."""

    def tell(self, state: str) -> None:
        """Send a state, such as ``READY=1``; a manager that cannot be reached is no reason to fail."""
        if not self._address:
            return
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
                sock.settimeout(0)
                sock.connect(self._address)
                sock.send(state.encode())
        except OSError as error:
            LOG.debug("the service manager cannot be told", extra={"reason": error, "resource": state})

    async def ping(self) -> None:
        """Send pings until cancelled; return at once if none are expected."""
        if self.ping_interval_s is None or not self._address:
            return
        while True:
            self.tell("WATCHDOG=1")
            await trio.sleep(self.ping_interval_s)
