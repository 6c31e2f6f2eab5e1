"""sending.py WAY PORT TEXT: bytes to 127.0.0.1 that no decoder reads."""

from __future__ import annotations

import socket
import ssl
import sys

way, port, text = sys.argv[1], int(sys.argv[2]), sys.argv[3].encode()
if way == "udp":
    socket.socket(type=socket.SOCK_DGRAM).sendto(text, ("127.0.0.1", port))
else:
    s = socket.create_connection(("127.0.0.1", port))
    if way == "tls":
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        s = context.wrap_socket(s)
    else:
        text = bytes(byte ^ 0x55 for byte in text)
    s.sendall(text)
    s.close()
