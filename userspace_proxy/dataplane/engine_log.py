"""What an engine writes to the log about itself. Entry points: ``log_engine_state``, ``report_bug``."""

import logging
from collections.abc import Generator

from userspace_proxy.dataplane.engine import Engine
from userspace_proxy.dataplane.engine_listeners import EngineListeners
from userspace_proxy.model.names import Protocol

LOG = logging.getLogger(__name__)


def report_bug(error: Exception) -> None:
    """Say that an exception has left a handler (see ``Engine``)."""
    LOG.error("a bug in the data plane ended one connection or flow", exc_info=error)


def log_engine_state(engine: Engine, listeners: EngineListeners) -> Generator[None, None, None]:
    """Write how much is open, then each Backend with its connections or flows; step by step: there may be thousands."""
    LOG.info(
        "state: %d connections, %d flows, %d file descriptors watched",
        listeners.open_relays,
        listeners.open_flows,
        len(engine.handlers),
    )
    for key, pool in list(listeners.pools()):
        noun = "flows" if key.service_port.protocol is Protocol.UDP else "connections"
        for member in pool.members:
            LOG.info(
                "state: backend with %d open %s, %d made",
                member.open,
                noun,
                member.connections,
                extra={"service": str(key.service_port), "backend": str(member.backend)},
            )
            yield
