"""A configuration file: a KubeProxyConfiguration, a UserspaceProxyConfiguration, or both, in any order.

Entry point: ``parse_config_file``.
"""

from collections.abc import Mapping

from attrs import frozen

from userspace_proxy.config_file import kube_proxy, own
from userspace_proxy.config_file.documents import Members, Place, read_documents
from userspace_proxy.config_file.own import OwnKey
from userspace_proxy.config_file.setting import Setting
from userspace_proxy.errors import ConfigError

_KINDS = {kube_proxy.KIND: kube_proxy.API_VERSION, own.KIND: own.API_VERSION}


@frozen
class ConfigFile:
    """What a configuration file says."""

    settings: tuple[Setting, ...] = ()
    """At most one for each option."""
    warnings: tuple[str, ...] = ()
    """Sentences: what may not be as the author wanted."""
    remarks: tuple[str, ...] = ()
    """Sentences: what is as documented, and still worth a line in the log."""


def parse_config_file(text: str, origin: str, own_keys: Mapping[str, OwnKey]) -> ConfigFile:
    """Return what the text of a configuration file says.

    Args:
        text: YAML or JSON.
        origin: Names the file in all sentences.
        own_keys: The keys of a UserspaceProxyConfiguration.

    Raises:
        ConfigError: the file cannot be used; the sentence names file, line and key.
    """
    documents = read_documents(text, origin)
    by_kind: dict[str, Members] = {}
    for document in documents:
        kind = _kind(document)
        if kind in by_kind:
            raise document.place.error(f"a second document of kind {kind}; put all of it into one")
        by_kind[kind] = document
    settings: list[Setting] = []
    warnings: list[str] = []
    remarks: list[str] = []
    if not documents:
        warnings.append(f"{origin}: the file is empty; 'userspace-proxy config default' prints one with all defaults")
    if kube_proxy.KIND in by_kind:
        found = kube_proxy.parse_kube_proxy(by_kind[kube_proxy.KIND])
        settings += found.settings
        warnings += [f"{origin}: {warning}" for warning in found.warnings]
        if found.not_applied:
            keys = ", ".join(map(str, found.not_applied))
            remarks.append(f"{origin}: of kube-proxy's settings these have no effect here: {keys}")
    if own.KIND in by_kind:
        settings += own.parse_own(by_kind[own.KIND], own_keys)
    _require_one_each(settings)
    return ConfigFile(tuple(settings), tuple(warnings), tuple(remarks))


def _kind(document: Members) -> str:
    members = {member.place.path: member for member in document.members}
    texts = [members[key].value if key in members else None for key in ("apiVersion", "kind")]
    for kind, version in _KINDS.items():
        if texts == [version, kind]:
            return kind
    wanted = " or ".join(f"{kind} ({version})" for kind, version in _KINDS.items())
    place = members["kind"].place if "kind" in members else document.place
    version, kind = (text if isinstance(text, str) else "none" for text in texts)
    raise ConfigError(
        f"{place.origin}:{place.line}: kind {kind} of apiVersion {version} is no configuration; write {wanted}"
    )


def _require_one_each(settings: list[Setting]) -> None:
    """Refuse two values for one option, which only two documents can have."""
    places: dict[str, Place] = {}
    for setting in settings:
        if setting.option in places:
            raise setting.place.error(f"says again what {places[setting.option]} says; remove one of them")
        places[setting.option] = setting.place
