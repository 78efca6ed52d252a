"""One end of a conversation by UDP, as a process in a network namespace. ``udp_driver`` starts it and talks to it.

``backend`` answers each datagram with a name and what it was, and remembers what came from chats. A ``chat`` sends its
name with numbers from 0 on, from one port, without end. ``ask`` sends what it is told and waits for each answer. Both
use connected sockets: what comes from another address than the one dialled is no answer.

It imports nothing of ours: an interpreter with no packages has to do.
"""

import contextlib
import json
import select
import socket
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Iterator

_LARGEST = 65535
_Answer = tuple[socket.socket, bytes, tuple[str, int]]
"""By which socket, what, to whom."""
_CHAT = b"chat "
"""What a chat's datagrams begin with; its name and the number follow."""
_LATE_S = 0.5
"""How long a chat waits for answers that are still on their way when it is told to end."""


def _family(address: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in address else socket.AF_INET


def _say(document: object) -> None:
    print(json.dumps(document), flush=True)


def _backend(name: bytes, ports: list[int], *, holds_answers: bool) -> None:
    """Answer on both families; for each line read, say what has come from chats: numbers in their order, by chat.

    Answers to chats may be held until the line ``answer`` comes.
    """
    numbers = defaultdict[str, list[int]](list)
    held: list[_Answer] = []
    sockets = []
    for port in ports:
        sock = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        sock.bind(("::", port))
        sockets.append(sock)
    _say("ready")
    while True:
        ready = select.select([sys.stdin, *sockets], [], [])[0]
        for sock in sockets:
            for chat, number, answer in _receive(sock, name):
                if chat:
                    numbers[chat].append(number)
                if chat and holds_answers:
                    held.append(answer)
                else:
                    _send(answer)
        if sys.stdin in ready:
            line = sys.stdin.readline()
            while line == "answer\n" and held:
                _send(held.pop())
            _say(numbers)


def _receive(sock: socket.socket, name: bytes) -> Iterator[tuple[str, int, _Answer]]:
    """Yield all that is there: which chat has sent which number, if it was one, and the answer."""
    while True:
        try:
            datagram, client = sock.recvfrom(_LARGEST)
        except BlockingIOError:
            return
        except OSError:  # an answer was refused
            continue
        chat, number = datagram.decode().split()[1:] if datagram.startswith(_CHAT) else ("", "0")
        yield chat, int(number), (sock, name + datagram, client)


def _send(answer: _Answer) -> None:
    sock, datagram, client = answer
    with contextlib.suppress(ConnectionRefusedError):  # an earlier answer was refused
        sock.sendto(datagram, client)


def _chat(name: str, address: str, port: int, source_port: int, interval_s: float) -> None:
    """Send numbers; for each line read, say how far it has come; at the line ``end``, end and say so too."""
    sent, answers, errors = 0, Counter[str](), Counter[str]()
    with socket.socket(_family(address), socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as sock:
        sock.bind(("", source_port))
        sock.connect((address, port))
        _say("ready")
        line, send_at = "\n", time.monotonic()
        while line == "\n":
            wait_s = max(send_at - time.monotonic(), 0)
            ready = select.select([sock, sys.stdin], [], [], wait_s)[0]
            if sock in ready:
                _take_answer(sock, answers, errors)
            if time.monotonic() >= send_at:
                try:
                    sock.send(_CHAT + f"{name} {sent}".encode())
                except OSError as error:  # what became of an earlier one; this one was not sent
                    errors[type(error).__name__] += 1
                else:
                    sent += 1
                    send_at = time.monotonic() + interval_s
            if sys.stdin in ready:
                line = sys.stdin.readline()
                if line == "\n":
                    _say({"sent": sent, "answers": answers, "errors": errors})
        while select.select([sock], [], [], _LATE_S)[0]:
            _take_answer(sock, answers, errors)
    _say({"sent": sent, "answers": answers, "errors": errors})


def _take_answer(sock: socket.socket, answers: "Counter[str]", errors: "Counter[str]") -> None:
    """Count an answer by who gave it."""
    try:
        answers[sock.recv(_LARGEST).decode().partition(" ")[0]] += 1
    except BlockingIOError:
        pass
    except OSError as error:
        errors[type(error).__name__] += 1


def _exchange(address: str, port: int, datagrams: list[bytes], timeout_s: float) -> list[bytes | str]:
    """Return the answer to each datagram, or the name of the exception that came instead."""
    outcomes: list[bytes | str] = []
    info = socket.getaddrinfo(address, port, type=socket.SOCK_DGRAM)[0]  # understands fe80::1%eth0
    with socket.socket(info[0], socket.SOCK_DGRAM) as sock:
        sock.settimeout(timeout_s)
        sock.connect(info[4])
        for datagram in datagrams:
            try:
                sock.send(datagram)
                outcomes.append(sock.recv(_LARGEST))
            except OSError as error:
                outcomes.append(type(error).__name__)
    return outcomes


def main() -> None:
    """Do what the arguments say."""
    role, *arguments = sys.argv[1:]
    if role in ("backend", "holding-backend"):
        name, *ports = arguments
        _backend(name.encode(), [int(port) for port in ports], holds_answers=role == "holding-backend")
    elif role == "chat":
        name, address, *numbers = arguments
        dialled_port, source_port, interval_ms = map(int, numbers)
        _chat(name, address, dialled_port, source_port, interval_ms / 1000)
    else:
        address, port, timeout_s = arguments
        datagrams = [bytes.fromhex(text) for text in json.load(sys.stdin)]
        outcomes = _exchange(address, int(port), datagrams, float(timeout_s))
        _say([outcome if isinstance(outcome, str) else {"hex": outcome.hex()} for outcome in outcomes])


if __name__ == "__main__":
    main()
