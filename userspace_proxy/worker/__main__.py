"""Runs as ``python -m userspace_proxy.worker FD``; not for people. See ``userspace_proxy.worker.main``."""

import logging
import os
import signal
import sys

if __name__ == "__main__":
    # What ends or tells all processes of a service, as systemd does, is for the control process, which drains. So
    # before anything that takes time: the imports do.
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)
    from userspace_proxy.worker.main import run_worker

    run_worker(int(sys.argv[1]))
    logging.shutdown()
    os._exit(0)  # nothing is left to be done, but Python would take half a second to take 10,000 listeners apart
