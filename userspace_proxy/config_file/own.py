"""A UserspaceProxyConfiguration: the options of ``run`` under the names of their keys.

It is ours alone, so nothing is forgiven. Entry point: ``parse_own``.
"""

from collections.abc import Iterable, Mapping
from difflib import get_close_matches

from attrs import frozen

from userspace_proxy.config_file.documents import Kind, Members, typed
from userspace_proxy.config_file.setting import Setting

API_VERSION = "userspace-proxy.io/v1alpha1"
KIND = "UserspaceProxyConfiguration"


@frozen
class OwnKey:
    """What a key of this kind of document means."""

    option: str
    """See ``Setting``."""
    kind: Kind


def parse_own(document: Members, keys: Mapping[str, OwnKey]) -> list[Setting]:
    """Return what a document of this kind says; null says nothing.

    Raises:
        ConfigError: a key is unknown or stands twice, or a value is of the wrong kind.
    """
    if document.repeated:
        raise document.repeated[0].error("stands twice")
    settings = []
    for member in document.members:
        key = member.place.path
        if key in ("apiVersion", "kind"):
            continue
        if key not in keys:
            raise member.place.error(f"is no key of {KIND}; {_advice(key, keys)}")
        value = typed(member, keys[key].kind)
        if value is not None:
            settings.append(Setting(keys[key].option, value, member.place))
    return settings


def _advice(key: str, keys: Iterable[str]) -> str:
    folded = {name.lower(): name for name in keys}
    nearest = get_close_matches(key.lower(), folded, n=1)
    if nearest:
        return f"the nearest is {folded[nearest[0]]}"
    return "'userspace-proxy config default' prints them all"
