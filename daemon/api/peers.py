"""Who sent a request: the process at the other end of the Unix socket, or an address."""

import socket
import struct
from dataclasses import dataclass
from ipaddress import IPv6Address, ip_address, ip_network
from typing import Protocol

_CREDENTIALS = struct.Struct("3i")  # pid, uid, gid: struct ucred, of the moment it connected

LOOPBACK = "loopback"


class _Socket(Protocol):
    """The part of a socket, trio's or the standard library's, that `peer_of` needs."""

    @property
    def family(self) -> int: ...
    def getsockopt(self, level: int, option: int, buflen: int, /) -> bytes: ...
    def getpeername(self) -> object: ...


@dataclass(frozen=True, slots=True)
class Peer:
    """`name` is for the log. `over_unix`: on admin.sock, whose file mode has let it in. `loopback`: of this host, over
    TCP. `network` is whom guesses are counted against: every address of this host is one, and so are the 2**64 of an
    IPv6 subnet, or a guesser would take another for each guess.
    """

    name: str
    over_unix: bool = False
    loopback: bool = False
    network: str = ""


# What no socket is known of, such as a request that a test makes.
UNKNOWN_LOCAL = Peer("an unknown address", loopback=True, network=LOOPBACK)


def peer_of(sock: _Socket) -> Peer:
    """The peer of a connected socket; one that has hung up already may be from anywhere."""
    try:
        if sock.family == socket.AF_UNIX:
            pid, uid, gid = _CREDENTIALS.unpack(
                sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
            )
            return Peer(f"uid {uid}, gid {gid}, pid {pid} on admin.sock", over_unix=True)
        name = sock.getpeername()
    except OSError:
        return Peer("an address unknown")
    assert isinstance(name, tuple)
    return peer_at(name[0], name[1])


def peer_at(host: str, port: int) -> Peer:
    """The peer at an IP address and a TCP port."""
    address = ip_address(host.partition("%")[0])
    if isinstance(address, IPv6Address) and address.ipv4_mapped is not None:
        address = address.ipv4_mapped
    shown = f"[{address}]:{port}" if address.version == 6 else f"{address}:{port}"
    if address.is_loopback:
        return Peer(shown, loopback=True, network=LOOPBACK)
    return Peer(shown, network=str(ip_network((address, 64 if address.version == 6 else 32), strict=False)))
