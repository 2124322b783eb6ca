"""Run inside a network namespace: ``serve UID TEXT HOST/PORT…`` tells every client TEXT, ``ask UID HOW HOST/PORT``
prints what it is told, or the error's name; ``fetch UID METHOD,PATH,BODY HOST/PORT`` prints an HTTP answer as JSON.
"""

from __future__ import annotations

import errno
import http.client
import json
import os
import selectors
import socket
import sys

DEADLINE = 5.0


def main() -> None:
    verb, uid, what, *addresses = sys.argv[1:]
    # Names as bytes and no lazy import from here on: another user need not be able to read the interpreter's files.
    os.setgid(int(uid))
    os.setuid(int(uid))
    if verb == "serve":
        serve(what.encode(), addresses)
    elif verb == "fetch":
        print(fetch(what, addresses[0]))
    else:
        print(ask(what, addresses[0]))


def serve(text: bytes, addresses: list[str]) -> None:
    selector = selectors.DefaultSelector()
    for address in addresses:
        host, _, port = address.rpartition("/")
        selector.register(
            socket.create_server(
                (host.encode(), int(port)),
                family=socket.AF_INET6 if ":" in host else socket.AF_INET,
                dualstack_ipv6=host == "::",
            ),
            selectors.EVENT_READ,
        )
    print('{"ready": true}', flush=True)
    while True:
        for key, _ in selector.select():
            assert isinstance(key.fileobj, socket.socket)
            client, _ = key.fileobj.accept()
            with client:
                client.settimeout(DEADLINE)
                client.sendall(text)


def ask(how: str, address: str) -> str:
    host, _, port = address.rpartition("/")
    family, kind, protocol, _, where = socket.getaddrinfo(host.encode(), int(port), type=socket.SOCK_STREAM)[0]
    with socket.socket(family, kind, protocol) as client:
        client.settimeout(DEADLINE)
        if how == "device":
            client.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, b"eth0")
        elif how.startswith("from="):
            client.bind((how[5:].encode(), 0))
        try:
            client.connect(where)
            return client.recv(100).decode()
        except TimeoutError:
            return "timeout"
        except OSError as error:
            return errno.errorcode.get(error.errno or 0, str(error))


def fetch(what: str, address: str) -> str:
    method, path, body = what.split(",", 2)
    host, _, port = address.rpartition("/")
    connection = http.client.HTTPConnection(host, int(port), timeout=DEADLINE)
    headers = {"Content-Type": "application/json", "Accept": "application/json, text/event-stream"} if body else {}
    try:
        connection.request(method, path, body or None, headers)
        answer = connection.getresponse()
        return json.dumps({"status": answer.status, "body": answer.read().decode()})
    except OSError as error:
        return json.dumps({"status": 0, "body": errno.errorcode.get(error.errno or 0, str(error))})
    finally:
        connection.close()


if __name__ == "__main__":
    main()
