"""The text of a hosts file with our block in it, written and taken out again. Pure: reads and writes no file.

Everything outside of the block stays byte for byte, down to a last line without an end: then the block has no end
either, and takes the one in front of it along. Entry points: ``read_hosts_lines``, ``with_block``,
``without_block``.
Source: hosts(5).
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator

from attrs import frozen

from userspace_proxy.errors import SteeringError
from userspace_proxy.model.names import Family, IPAddress, NamespacedName, family_of
from userspace_proxy.plan.state import FrontendKind
from userspace_proxy.steering.base import Placement

BEGIN = "# BEGIN userspace-proxy"
END = "# END userspace-proxy"
_MADE_FOR_BLOCK = "# this file was made for these lines; it goes with them"
_NEVER_SHORT = "localhost"
"""A Service of this name must not be what programs reach their own machine by."""
_FAMILIES = list(Family)


@frozen
class HostsLine:
    """Where a Service is reached."""

    service: NamespacedName
    address: IPAddress
    moved: tuple[str, ...] = ()
    """Its ports that have another number there, as ``80/TCP is 10080``."""


def read_hosts_lines(placements: Iterable[Placement], *, clients_dial_listener: bool) -> list[HostsLine]:
    """Return where Services are reached by their cluster addresses, or by what stands for these.

    Args:
        placements: Of all Services.
        clients_dial_listener: Their Listeners stand for their cluster addresses.

    Returns:
        A line for each address, by namespace and name, IPv4 first.
    """
    moved: defaultdict[tuple[NamespacedName, IPAddress], list[str]] = defaultdict(list)
    for placement in placements:
        frontend, listener = placement.frontend, placement.listener
        if frontend.kind is not FrontendKind.CLUSTER_IP or frontend.address is None:
            continue
        address = listener.address if clients_dial_listener else frontend.address
        ports = moved[frontend.service_port.service, address]
        if clients_dial_listener and listener.port != frontend.port:
            ports.append(f"{frontend.port}/{frontend.protocol} is {listener.port}")
    lines = (HostsLine(service, address, tuple(ports)) for (service, address), ports in moved.items())
    return sorted(
        lines, key=lambda line: (line.service.namespace, line.service.name, _FAMILIES.index(family_of(line.address)))
    )


def with_block(content: bytes | None, lines: Iterable[HostsLine]) -> bytes:
    """Return what a hosts file is to be: a block of these lines in the place of the one that it has, or at its end.

    Names that other lines of the file have are left to them.

    Args:
        content: What the file is; None: there is none.
        lines: What the block is to say.

    Raises:
        SteeringError: the file has markers of ours that do not enclose one block; one clause says where.
    """
    before, inside, after = _split(content or b"")
    is_made_for_block = content is None or _MADE_FOR_BLOCK.encode() in inside
    block = [BEGIN, *([_MADE_FOR_BLOCK] if is_made_for_block else []), *_render(lines, _names(before + after)), END]
    text = "\n".join(block).encode()
    if before and not before.endswith(b"\n"):
        return before + b"\n" + text
    return before + text + b"\n" + after


def without_block(content: bytes) -> bytes | None:
    """Return what a hosts file is to be without our block; None: it was made for the block, and is to go with it.

    Raises:
        SteeringError: the file has markers of ours that do not enclose one block; one clause says where.
    """
    before, inside, after = _split(content)
    is_made_for_block = _MADE_FOR_BLOCK.encode() in inside
    return None if is_made_for_block and not before + after else before + after


def _split(content: bytes) -> tuple[bytes, list[bytes], bytes]:
    """Return what is in front of our block, its lines and what is behind it; without a block all is in front."""
    lines = content.splitlines(keepends=True)
    words = [line.strip() for line in lines]
    markers = [(number, word) for number, word in enumerate(words, start=1) if word in (BEGIN.encode(), END.encode())]
    if not markers:
        return content, [], b""
    if [word for _, word in markers] != [BEGIN.encode(), END.encode()]:
        number, word = markers[0]
        raise SteeringError(
            f"line {number}, '{word.decode()}', is not of one block from '{BEGIN}' to '{END}'; "
            "remove what is left of such blocks by hand"
        )
    (first, _), (last, _) = markers
    before = b"".join(lines[: first - 1])
    if not lines[last - 1].endswith(b"\n"):
        before = before.removesuffix(b"\n")
    return before, words[first : last - 1], b"".join(lines[last:])


def _names(content: bytes) -> frozenset[str]:
    """Return the names that lines of a hosts file have."""
    fields = (line.partition(b"#")[0].split()[1:] for line in content.splitlines())
    return frozenset(name.decode(errors="replace").lower() for names in fields for name in names)


def _render(lines: Iterable[HostsLine], taken: frozenset[str]) -> Iterator[str]:
    lines = list(lines)
    namespaces: defaultdict[str, set[str]] = defaultdict(set)
    for line in lines:
        namespaces[line.service.name].add(line.service.namespace)
    for line in lines:
        name, namespace = line.service.name, line.service.namespace
        is_unique = len(namespaces[name]) == 1 and name != _NEVER_SHORT
        long = f"{name}.{namespace}"
        names = [*([name] if is_unique else []), long, f"{long}.svc", f"{long}.svc.cluster.local"]
        shown = [each for each in names if each not in taken]
        if shown:
            moved = f"  # {', '.join(line.moved)}" if line.moved else ""
            yield f"{line.address} {' '.join(shown)}{moved}"
