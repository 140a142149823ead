# Copyright 2026 The flux-hf authors. Licensed under the Apache License, Version 2.0.
"""Fetches a visitor's link from the server without lending the visitor the server's place in its network.

Only http and https, only public addresses (unless private ones are allowed), looked up once and connected to as looked
up, so that a name cannot mean one address when it is checked and another when it is used; every redirect anew. No proxy
is used. Size and time are bounded.
"""

import http.client
import io
import ipaddress
import os
import socket
import ssl
import time
from pathlib import PurePosixPath
from urllib.parse import quote, unquote, urljoin, urlsplit

from ..checkpoint_files import replacing


MAX_REDIRECTS = 5
SOCKET_SECONDS, TOTAL_SECONDS = 10.0, 60.0
CHUNK = 1 << 16
REDIRECTS = (301, 302, 303, 307, 308)
# Networks that carry an IPv4 address in an IPv6 one: whoever answers there may be anyone.
_TRANSLATED = [
    ipaddress.ip_network(network) for network in ("64:ff9b::/96", "64:ff9b:1::/48", "2002::/16", "2001::/32")
]


def fetch(link: str, path: str | os.PathLike, max_bytes: int, allow_private: bool = False) -> None:
    """Writes what a link leads to into a file.

    Args:
        link: http or https address.
        path: The file; nothing is left there where fetching fails.
        max_bytes: Most that is taken.
        allow_private: Whether addresses of this machine and of private networks are allowed.

    Raises:
        ValueError: the link is not allowed, does not answer in time, or answers with anything but a file of that size.
    """
    deadline = time.monotonic() + TOTAL_SECONDS
    for _ in range(MAX_REDIRECTS + 1):
        connection, response = _ask(link, allow_private, deadline)
        try:
            if response.status in REDIRECTS and response.getheader("Location"):
                link = urljoin(link, response.getheader("Location"))
                continue
            if response.status != 200:
                raise ValueError(f"the link answers {response.status} {response.reason}")
            return _write(response, path, max_bytes)
        except (OSError, http.client.HTTPException) as error:
            raise ValueError(f"the link broke off ({_words(error)})") from error
        finally:
            connection.close()
    raise ValueError(f"the link leads on more than {MAX_REDIRECTS} times")


def file_suffix(link: str) -> str:
    """The ending of the link's file name, such as ".mp4"; empty for anything unusual."""
    suffix = PurePosixPath(unquote(urlsplit(link).path)).suffix.lower()
    return suffix if suffix[1:].isascii() and suffix[1:].isalnum() and len(suffix) <= 6 else ""


def public_addresses(host: str, port: int, allow_private: bool = False) -> list[str]:
    """The addresses of a host, in the order to try.

    Raises:
        ValueError: it has none, or one of them is not public.
    """
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise ValueError(f"the link's host {host!r} is not known") from error
    addresses = list(dict.fromkeys(entry[4][0] for entry in found))
    if not allow_private and not all(map(_is_public, addresses)):
        raise ValueError(f"the link's host {host!r} is in a private network, which is not fetched from")
    return addresses


def _is_public(text: str) -> bool:
    address = ipaddress.ip_address(text.partition("%")[0])
    mapped = getattr(address, "ipv4_mapped", None)
    if mapped is not None:
        address = mapped
    if address.version == 6 and any(address in network for network in _TRANSLATED):
        return False
    return address.is_global and not address.is_multicast


def _seconds_left(deadline: float) -> float:
    """For the next step. Raises TimeoutError where none are."""
    left = deadline - time.monotonic()
    if left <= 0:
        raise TimeoutError(f"it takes longer than {TOTAL_SECONDS:g} s")
    return min(SOCKET_SECONDS, left)


class _TimedReader(io.RawIOBase):
    """Reads from a socket until a deadline: its own timeout begins anew with every byte."""

    def __init__(self, sock: socket.socket, deadline: float):
        self.sock, self.deadline = sock, deadline
        self.raw = sock.makefile("rb", buffering=0)  # the socket stays open for as long as this does

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int | None:
        self.sock.settimeout(_seconds_left(self.deadline))
        try:
            return self.raw.readinto(buffer)
        except TimeoutError:
            _seconds_left(self.deadline)  # says so where it is the whole time that is over
            raise

    def close(self) -> None:
        self.raw.close()
        super().close()


class _TimedSocket:
    """What `http.client` uses of a socket."""

    def __init__(self, sock: socket.socket, deadline: float):
        self.sock, self.deadline = sock, deadline
        self.sendall, self.close = sock.sendall, sock.close

    def makefile(self, mode: str) -> io.BufferedReader:
        return io.BufferedReader(_TimedReader(self.sock, self.deadline))


class _Pinned(http.client.HTTPConnection):
    """A connection to an address that was looked up and checked before, in the name of `host`, until a deadline."""

    def __init__(self, host: str, port: int, addresses: list[str], context: ssl.SSLContext | None, deadline: float):
        super().__init__(host, port)
        self.addresses, self.context, self.deadline = addresses, context, deadline
        if context is not None:
            self.default_port = 443

    def connect(self) -> None:
        error: OSError = OSError("no address")
        for address in self.addresses:
            try:
                sock = socket.create_connection((address, self.port), _seconds_left(self.deadline))
                break
            except OSError as failed:
                error = failed
        else:
            raise error
        if self.context is not None:
            sock = self.context.wrap_socket(sock, server_hostname=self.host)
        self.sock = _TimedSocket(sock, self.deadline)


def _ask(link: str, allow_private: bool, deadline: float) -> tuple[_Pinned, http.client.HTTPResponse]:
    try:
        parts = urlsplit(link.strip())
        host, port = parts.hostname, parts.port
    except ValueError as error:
        raise ValueError(f"this is no link: {_shown(link)}") from error
    if parts.scheme not in ("http", "https") or not host:
        raise ValueError(f"only http and https links are fetched, got {_shown(link)}")
    if parts.username is not None:
        raise ValueError("links with a user name are not fetched")
    port = port or (443 if parts.scheme == "https" else 80)
    addresses = public_addresses(host, port, allow_private)
    context = ssl.create_default_context() if parts.scheme == "https" else None
    connection = _Pinned(host, port, addresses, context, deadline)
    target = quote(parts.path or "/", safe="!$%&'()*+,/:;=@~") + (f"?{_encoded(parts.query)}" if parts.query else "")
    try:
        connection.request("GET", target, headers={"User-Agent": "flux-hf", "Accept": "video/*,*/*;q=0.5"})
        return connection, connection.getresponse()
    except (OSError, http.client.HTTPException, ValueError) as error:
        connection.close()
        raise ValueError(f"the link's host {host!r} does not answer ({_words(error)})") from error


def _write(response: http.client.HTTPResponse, path: str | os.PathLike, max_bytes: int) -> None:
    too_large = f"the link's file has more than {max_bytes / 1e6:g} MB, which is the most that is taken"
    if int(response.getheader("Content-Length") or 0) > max_bytes:
        raise ValueError(too_large)
    taken = 0
    with replacing(path) as temporary, open(temporary, "wb") as file:
        while chunk := response.read1(CHUNK):
            taken += len(chunk)
            if taken > max_bytes:
                raise ValueError(too_large)
            file.write(chunk)
        if response.length:
            raise ValueError(f"the link broke off after {taken} bytes")


def _encoded(query: str) -> str:
    return quote(query, safe="!$%&'()*+,/:;=?@[]~")


def _words(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error) or type(error).__name__


def _shown(link: str) -> str:
    return repr(link if len(link) <= 60 else link[:57] + "...")
