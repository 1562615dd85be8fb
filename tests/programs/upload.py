# SPDX-License-Identifier: Apache-2.0
"""Uploads with a blocking socket, then blocks for the answer: how many bytes the server counted."""
import socket
import struct
import sys

host, port, total = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
with socket.create_connection((host, port)) as conn:
    conn.settimeout(None)
    chunk = b"u" * 65536
    left = total
    while left > 0:
        conn.sendall(chunk[: min(left, len(chunk))])
        left -= min(left, len(chunk))
    conn.shutdown(socket.SHUT_WR)
    answer = b""
    while len(answer) < 8:
        part = conn.recv(8 - len(answer))
        if not part:
            sys.exit("early end")
        answer += part
counted = struct.unpack("<Q", answer)[0]
if counted != total:
    sys.exit(f"the server counted {counted} of {total}")
