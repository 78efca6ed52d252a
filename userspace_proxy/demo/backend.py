"""One backend of the demonstration: answers every HTTP request with its name.

A program of its own, started as ``python -m userspace_proxy.demo.backend FD NAME`` with a listening socket as file
descriptor FD. It imports little, so that it starts at once. It says ``ready`` on stdout when it serves, and ends when
its stdin does: so it cannot outlive the demonstration, however that ends.
"""

import socket
import sys
import threading
import time

DELAY_S = 0.005
"""Time to think about an answer; arbitrary: long enough for requests to overlap."""
_TIMEOUT_S = 10.0
_REQUEST_LIMIT_BYTES = 65536


def main() -> None:
    """Serve until stdin ends."""
    fd, name = sys.argv[1:]
    listening = socket.socket(fileno=int(fd))
    threading.Thread(target=_serve, args=(listening, _answer_bytes(name)), daemon=True).start()
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    sys.stdin.buffer.read()


def _answer_bytes(name: str) -> bytes:
    body = f"hello from {name}\n"
    head = f"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n"
    return (head + body).encode()


def _serve(listening: socket.socket, answer: bytes) -> None:
    while True:
        connection, _ = listening.accept()
        threading.Thread(target=_answer, args=(connection, answer), daemon=True).start()


def _answer(connection: socket.socket, answer: bytes) -> None:
    with connection:
        connection.settimeout(_TIMEOUT_S)
        request = b""
        try:
            while b"\r\n\r\n" not in request:
                received = connection.recv(_REQUEST_LIMIT_BYTES)
                request += received
                if not received or len(request) > _REQUEST_LIMIT_BYTES:
                    return
            time.sleep(DELAY_S)  # noqa: TID251 - a thread for each connection: nobody else waits
            connection.sendall(answer)
        except OSError:  # the client is slow, or gone: its own affair
            return


if __name__ == "__main__":
    main()
