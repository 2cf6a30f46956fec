"""Exits with 0 when the process that serves HTTP on a port of this container is ready: `python -IS ready.py 8501`.

Bare sockets, since a health check starts an interpreter every few seconds, and an HTTP client takes longer to import
than the answer takes to come.
"""

import socket
import sys

TIMEOUT_S = 2.0
ANSWER_BYTES_MAX = 4096


def main(port: int) -> str | None:
    """Why it is not ready, or None."""
    try:
        with socket.create_connection(("127.0.0.1", port), TIMEOUT_S) as connection:
            connection.sendall(b"GET /readyz HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n")
            answer = bytearray()
            while len(answer) < ANSWER_BYTES_MAX and (received := connection.recv(ANSWER_BYTES_MAX)):
                answer += received
    except OSError as error:
        return f"port {port}: {error}"
    head, _, body = answer.decode("latin-1").partition("\r\n\r\n")
    status_line = head.partition("\r\n")[0]
    return None if status_line.startswith("HTTP/1.1 200 ") else f"{status_line}: {body.strip()}"


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1])))
