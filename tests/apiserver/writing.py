"""Creating, changing and deleting objects: metadata, versions, merge patches.

What a kind of objects may hold is said by its ``Rules``.

Source: Kubernetes API conventions, "Metadata", "Concurrency Control and Consistency"; RFC 7386.
Entry point: ``Writer.write``.
"""

import secrets
import uuid
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, Protocol

import msgspec
from apiserver.exchange import Request
from apiserver.resources import NAMESPACES, NODES, Place
from apiserver.statuses import ApiError, already_exists, bad_request, conflict, no_such_path, not_found
from apiserver.store import Key, Store, Stored
from attrs import define, field

Content = dict[str, Any]

SERVER_METADATA = ("uid", "creationTimestamp", "resourceVersion", "generation")


class Rules(Protocol):
    """What a kind of objects may hold, and what the server fills in."""

    def prepare(self, content: Content, old: Mapping[str, Any] | None, *, is_status: bool) -> Content:
        """Return the object with all that the server fills in.

        Raises:
            ApiError: 422, a rule is broken.
        """

    def forget(self, content: Mapping[str, Any]) -> None:
        """Give back what was allotted to an object that is deleted."""


class NoRules:
    """Everything is allowed."""

    def prepare(self, content: Content, old: Mapping[str, Any] | None, *, is_status: bool) -> Content:  # noqa: ARG002
        """Return the object as it is."""
        return content

    def forget(self, content: Mapping[str, Any]) -> None:
        """Do nothing."""


@define
class Writer:
    """Does what requests other than GET ask for."""

    rules: Mapping[str, Rules] = field(factory=dict)
    """By plural name of the resource."""

    def write(self, store: Store, request: Request, place: Place) -> tuple[int, Stored | Mapping[str, Any]]:
        """Do what a request asks for; return the HTTP status and what to answer.

        Raises:
            ApiError: it is refused, and nothing has changed.
        """
        match request.method:
            case "POST":
                return 201, self.create(store, place, place.resource.read(_decode(request.body)))
            case "PUT":
                return 200, self.change(store, place, place.resource.read(_decode(request.body)))
            case "PATCH":
                kind = request.headers.get("content-type", "").partition(";")[0]
                if kind != "application/merge-patch+json":
                    raise ApiError(415, f"the body of the request was in an unknown format: {kind}")
                old = _existing(store, place)
                return 200, self.change(store, place, merged(old.object, place.resource.read(_decode(request.body))))
            case _:
                return 200, self.delete(store, place)

    def create(self, store: Store, place: Place, content: Content) -> Stored:
        """Create an object."""
        content = _checked_kind(content, place)
        metadata = {name: value for name, value in content["metadata"].items() if name not in SERVER_METADATA}
        if content["metadata"].get("resourceVersion"):
            raise bad_request("resourceVersion should not be set on objects to be created")
        if not metadata.get("name") and metadata.get("generateName"):
            metadata["name"] = metadata["generateName"] + secrets.token_hex(3)[:5]
        key = _key(metadata, place)
        if place.resource.is_namespaced:
            metadata["namespace"] = key.namespace
            if Key("", key.namespace) not in store.collection(NAMESPACES.plural).objects:
                raise not_found("namespaces", key.namespace)
        metadata |= {"uid": str(uuid.uuid4()), "creationTimestamp": f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}"}
        collection = store.collection(place.resource.plural)
        if key in collection.objects:
            raise already_exists(place.resource.plural, key.name)
        content = {**content, "metadata": metadata}
        if place.resource is not NODES:  # a kubelet creates its Node with its status
            content.pop("status", None)
        return collection.put(key, self._rules(place).prepare(content, None, is_status=False))

    def change(self, store: Store, place: Place, content: Content) -> Stored:
        """Replace an object, or its status alone."""
        content = _checked_kind(content, place)
        old = _existing(store, place)
        given = content["metadata"]
        key = _key(given, place)
        if key.name != place.name:
            raise bad_request(f"the name of the object ({key.name}) does not match the name on the URL ({place.name})")
        version, uid = given.get("resourceVersion"), given.get("uid")
        if (version and version != str(old.revision)) or (uid and uid != old.object["metadata"]["uid"]):
            raise conflict(place.resource.plural, key.name)
        kept = {name: old.object["metadata"][name] for name in SERVER_METADATA if name in old.object["metadata"]}
        content = {**content, "metadata": {**given, **kept}}
        if place.resource.is_namespaced:
            content["metadata"]["namespace"] = key.namespace
        is_status = place.subresource == "status"
        if is_status:
            content = {**old.object, "status": content.get("status", {})}
        elif place.resource.has_status and "status" in old.object:
            content["status"] = old.object["status"]
        content = self._rules(place).prepare(content, old.object, is_status=is_status)
        return store.collection(place.resource.plural).put(key, content)

    def delete(self, store: Store, place: Place) -> Mapping[str, Any]:
        """Delete an object, with a namespace all that is in it."""
        old = _existing(store, place)
        key = Key(place.namespace or "", place.name or "")
        if place.resource is NAMESPACES:
            for plural, collection in store.collections.items():
                for inner in [one for one in collection.objects if one.namespace == key.name]:
                    self._forget(plural, collection.delete(inner).object)
        store.collection(place.resource.plural).delete(key)
        self._forget(place.resource.plural, old.object)
        details = {"name": key.name, "kind": place.resource.plural, "uid": old.object["metadata"]["uid"]}
        return {"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "details": details}

    def _forget(self, plural: str, content: Mapping[str, Any]) -> None:
        if plural in self.rules:
            self.rules[plural].forget(content)

    def _rules(self, place: Place) -> Rules:
        return self.rules.get(place.resource.plural, NoRules())


def merged(target: Any, patch: Any) -> Any:
    """Return what a merge patch makes of a value; source: RFC 7386 section 2."""
    if not isinstance(patch, Mapping):
        return patch
    result = dict(target) if isinstance(target, Mapping) else {}
    for name, value in patch.items():
        if value is None:
            result.pop(name, None)
        else:
            result[name] = merged(result.get(name), value)
    return result


def _decode(body: bytes) -> Content:
    try:
        return msgspec.json.decode(body, type=dict[str, Any])
    except msgspec.DecodeError as error:
        raise bad_request(f"the object provided is unrecognized: {error}") from None


def _checked_kind(content: Content, place: Place) -> Content:
    wanted = (place.resource.api_version, place.resource.kind)
    given = (content.get("apiVersion", wanted[0]), content.get("kind", wanted[1]))
    if given != wanted:
        raise bad_request(f"{given[1]} in version {given[0]!r} cannot be handled as a {wanted[1]}")
    if not isinstance(content.get("metadata", {}), Mapping):
        raise bad_request("metadata is no object")
    return {name: value for name, value in content.items() if name not in {"kind", "apiVersion"}} | {
        "metadata": content.get("metadata", {})
    }


def _key(metadata: Mapping[str, Any], place: Place) -> Key:
    name = metadata.get("name") or place.name
    if not name:
        raise ApiError(
            422,
            f'{place.resource.kind} "" is invalid: metadata.name: Required value: name or generateName is required',
        )
    if not place.resource.is_namespaced:
        return Key("", name)
    if place.namespace is None:
        raise no_such_path()
    if metadata.get("namespace", place.namespace) != place.namespace:
        raise bad_request("the namespace of the provided object does not match the namespace sent on the request")
    return Key(place.namespace, name)


def _existing(store: Store, place: Place) -> Stored:
    found = store.collection(place.resource.plural).objects.get(Key(place.namespace or "", place.name or ""))
    if found is None:
        raise not_found(place.resource.plural, place.name or "")
    return found
