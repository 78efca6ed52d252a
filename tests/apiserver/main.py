"""The API server double as a program of its own, with as many Services as wanted: for benchmarks and for trying things.

    python tests/apiserver/main.py --kubeconfig FILE [--services 10000 --endpoints 10] [--address A] [--port N]

It writes a kubeconfig, prints one line when it listens, and then does what the lines of its standard input say until
that ends. Each line is a JSON object with ``do``, each answer one line of JSON with times of the monotonic clock:

    {"do": "set", "service": 7, "generation": 1}         changes one EndpointSlice -> {"at_s": ..., "sent_s": ...}
    {"do": "empty", "service": 7}                        takes all its endpoints   -> {"at_s": ..., "sent_s": ...}
    {"do": "add", "service": 10000}                      makes one Service more    -> {"at_s": ..., "sent_s": ...}
    {"do": "churn", "rate": 1000, "seconds": 30}         changes random ones, evenly spread -> {"at_s": ...}
    {"do": "requests"}                                   what was asked so far              -> [{"at_s": ...}, ...]
"""

import argparse
import gc
import random
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import msgspec

# not this folder: its modules belong to the package apiserver
sys.path[0] = str(Path(__file__).resolve().parents[1])

from apiserver.access import ADMIN_TOKEN, PROXY_TOKEN  # noqa: E402
from apiserver.certificates import make_certificates  # noqa: E402
from apiserver.double import ApiServer  # noqa: E402
from apiserver.resources import ENDPOINT_SLICES, SERVICES  # noqa: E402
from apiserver.scale import endpoint_slice, load, service, service_key, slice_key  # noqa: E402
from apiserver.store import Store  # noqa: E402

STEP_S = 0.005
"""So often changes are made during churn, several at once."""


SENT_STEP_S = 0.0002
SENT_TIMEOUT_S = 1.0


class Commands:
    """What the lines of standard input may say."""

    def __init__(self, server: ApiServer, services: int, endpoints: int) -> None:
        self._server = server
        self._endpoints = endpoints
        self._generations = [0] * services
        self._random = random.Random(0)  # noqa: S311  the same services each time

    def do(self, command: dict[str, Any]) -> Any:
        """Do what a line says and return the answer."""
        match command:
            case {"do": "set", "service": number, "generation": generation}:
                at_s = self._server.in_thread(lambda store: self._set(store, number, generation))
                return {"at_s": at_s, "sent_s": self._wait_sent(at_s)}
            case {"do": "empty", "service": number}:
                at_s = self._server.in_thread(lambda store: _put_slice(store, number, 0, 0))
                return {"at_s": at_s, "sent_s": self._wait_sent(at_s)}
            case {"do": "add", "service": number}:
                at_s = self._server.in_thread(lambda store: self._add(store, number))
                return {"at_s": at_s, "sent_s": self._wait_sent(at_s)}
            case {"do": "churn", "rate": rate, "seconds": seconds}:
                return self._churn(rate, seconds)
            case {"do": "requests"}:
                return [
                    {"at_s": one.at_s, "resource": one.resource, "kind": one.kind, "query": one.query}
                    for one in self._server.requests
                ]
            case _:
                return {"error": "unknown command"}

    def _set(self, store: Store, number: int, generation: int) -> float:
        self._generations[number] = generation
        return _put_slice(store, number, self._endpoints, generation)

    def _add(self, store: Store, number: int) -> float:
        at_s = time.monotonic()
        store.collection(SERVICES.plural).put(service_key(number), service(number))
        _put_slice(store, number, self._endpoints, 0)
        return at_s

    def _wait_sent(self, at_s: float) -> float | None:
        """Return when a watch has written a line since; None: there is no watch."""
        deadline = time.monotonic() + SENT_TIMEOUT_S
        while self._server.watches.sent_s < at_s:
            if time.monotonic() > deadline:
                return None
            pause(SENT_STEP_S)
        return self._server.watches.sent_s

    def _churn(self, rate: float, seconds: float) -> dict[str, Any]:
        begin, made, late_s = time.monotonic(), 0, 0.0
        wanted = int(rate * seconds)

        def change(store: Store, count: int) -> None:
            for _ in range(count):
                number = self._random.randrange(1, len(self._generations))
                self._set(store, number, self._generations[number] + 1)

        while made < wanted:
            due = min(wanted, int((time.monotonic() - begin) * rate) + 1)
            if due > made:
                late_s = max(late_s, time.monotonic() - begin - made / rate)
                self._server.in_thread(lambda store, count=due - made: change(store, count))  # type: ignore[misc]
                made = due
            pause(STEP_S)
        # the last one, so that who serves it has done all the others
        at_s = self._server.in_thread(lambda store: self._set(store, 0, self._generations[0] + 1))
        took_s = at_s - begin
        return {"at_s": at_s, "late_s": late_s, "made": made, "took_s": took_s, "generation": self._generations[0]}


def _put_slice(store: Store, number: int, endpoints: int, generation: int) -> float:
    content = endpoint_slice(number, endpoints, generation)
    at_s = time.monotonic()
    store.collection(ENDPOINT_SLICES.plural).put(slice_key(number), content)
    return at_s


def pause(seconds: float) -> None:
    """Sleep."""
    time.sleep(seconds)  # noqa: TID251  there is no loop here to be stalled


def main() -> None:
    """Run until standard input ends."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kubeconfig", type=Path, required=True)
    parser.add_argument("--address", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--services", type=int, default=0)
    parser.add_argument("--endpoints", type=int, default=0, help="of each EndpointSlice")
    parser.add_argument("--plain", action="store_true", help="HTTP without TLS")
    parser.add_argument("--user", choices=("admin", "proxy"), default="proxy", help="of the kubeconfig")
    arguments = parser.parse_args()
    with TemporaryDirectory(prefix="api-server-double-") as folder:
        certificates = None if arguments.plain else make_certificates(Path(folder), [arguments.address])
        server = ApiServer(arguments.address, certificates, arguments.port)
        load(server.api.store, arguments.services, arguments.endpoints)
        gc.disable()  # with so many objects each collection would be a pause
        with server:
            server.kubeconfig(arguments.kubeconfig, token=ADMIN_TOKEN if arguments.user == "admin" else PROXY_TOKEN)
            print(f"listening at {server.url}", flush=True)
            commands = Commands(server, arguments.services, arguments.endpoints)
            for line in sys.stdin:
                print(msgspec.json.encode(commands.do(msgspec.json.decode(line))).decode(), flush=True)


if __name__ == "__main__":
    main()
