"""Credentials: where the API server is and how to prove who asks, as values; and when they are out of date.

Nothing here knows where credentials come from (``api_client``) or how they are used on the wire (``api_http``). Entry
points: ``Credentials``, ``CredentialStore``.
"""

import logging
import math
import os
import ssl
import threading
import time
from collections.abc import Callable

import msgspec
from attrs import define, field

from userspace_proxy.errors import ConfigError

LOG = logging.getLogger(__name__)

RELOAD_INTERVAL_S = 30.0
"""Between two readings that no changed file gives a reason for; arbitrary: each takes a third of a second of work, and
exec plugins may ask somebody who counts."""


class Credentials(msgspec.Struct, frozen=True, kw_only=True):
    """Everything a connection to the API server needs; has a form in JSON, as a helper process finds it out."""

    server: str
    """URL of the API server, without a slash at its end."""
    origin: str
    """Where all this was read, for sentences, as ``kubeconfig /root/admin.conf``."""
    authorization: str = ""
    """Value of the header; empty: none."""
    ca_pem: str = ""
    """Certificates of those who may vouch for the server; empty: those that the system trusts."""
    ca_origin: str = "the system's certificate authorities"
    """Where they were read."""
    certificate_pem: str = ""
    """Of the client; empty: none."""
    key_pem: str = ""
    verifies_server: bool = True
    """False: whoever answers is believed to be the API server."""
    tls_server_name: str = ""
    """The name in the server's certificate; empty: the host of the URL."""
    proxy: str = ""
    """URL of the HTTP proxy on the way; empty: none."""
    is_cluster_address: bool = False
    """The URL is the one that pods are given: that of the Service ``default/kubernetes``."""
    files: tuple[str, ...] = ()
    """All of this may be different when one of them changes."""

    def ssl_context(self) -> ssl.SSLContext:
        """Return a context for connections to the server.

        Raises:
            ConfigError: a certificate or the key cannot be used.
        """
        if not self.ca_pem:
            context = ssl.create_default_context()
        else:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
            context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN  # as for kubectl, an intermediate authority will do
            try:
                context.load_verify_locations(cadata=self.ca_pem)
            except (ssl.SSLError, ValueError):
                raise ConfigError(f"{self.ca_origin} holds no certificate that can be read; correct it") from None
        if not self.verifies_server:
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
        if self.certificate_pem:
            self._load_client_certificate(context)
        return context

    def _load_client_certificate(self, context: ssl.SSLContext) -> None:
        try:
            # the ssl module takes them from a file only; this one exists in memory alone
            descriptor = os.memfd_create("client certificate", os.MFD_CLOEXEC)
            with os.fdopen(descriptor, "w", encoding="utf-8") as file:
                file.write(f"{self.certificate_pem}\n{self.key_pem}\n")
                file.flush()
                context.load_cert_chain(f"/proc/self/fd/{descriptor}")
        except (ssl.SSLError, ValueError):
            raise ConfigError(
                f"the client certificate and key of {self.origin} are no PEM, or do not belong together; correct them"
            ) from None
        except OSError as error:  # no descriptors, no memory: that passes
            raise ConfigError(f"cannot load the client certificate of {self.origin}: {error.strerror}") from None


_Signature = tuple[tuple[int, int, int, int] | None, ...]


@define(eq=False)
class CredentialStore:
    """The credentials in force, shared by all threads; reads them anew when files have changed, or when asked to.

    What cannot be used does not replace what could be.
    """

    _load: Callable[[], Credentials]
    """Finds them out; raises ConfigError, and takes as long as it takes."""
    _clock: Callable[[], float] = time.monotonic
    """Seconds, never going back."""
    _lock: threading.Lock = field(factory=threading.Lock, init=False)
    _current: Credentials | None = field(default=None, init=False)
    _signature: _Signature = field(default=(), init=False)
    """Of the files that the credentials were read from."""
    _bad_signature: _Signature | None = field(default=None, init=False)
    """Of files that could not be used."""
    _bad_until_s: float = field(default=0.0, init=False)
    """Those are not tried again before."""
    _reload_after_s: float = field(default=-math.inf, init=False)
    """What is refused is not read anew before."""
    _reload_failure: str = field(default="", init=False)
    """Why it could not be the last time; empty: it could."""

    def current(self) -> Credentials:
        """Return the credentials, read anew if a file of theirs has changed.

        What cannot be read any more stays in force: it is for the server to say that it is of no use.

        Raises:
            ConfigError: there never were any that can be used.
        """
        with self._lock:
            if self._current is None:
                return self._read()
            found = _signature(self._current.files)
            if found == self._signature or (found == self._bad_signature and self._clock() < self._bad_until_s):
                return self._current
            try:
                return self._read(found)
            except ConfigError as error:
                self._bad_signature, self._bad_until_s = found, self._clock() + RELOAD_INTERVAL_S
                LOG.warning("the changed credentials cannot be used; the old ones stay", extra={"reason": error})
            return self._current

    def reload(self, refused: Credentials) -> Credentials:
        """Return newer credentials than those that the server has refused; the same if they were just read.

        Raises:
            ConfigError: there are none that can be used.
        """
        with self._lock:
            if self._current is not refused:
                return self._current or self._read()
            if self._clock() < self._reload_after_s:
                if self._reload_failure:
                    raise ConfigError(self._reload_failure)
                return refused
            self._reload_after_s = self._clock() + RELOAD_INTERVAL_S
            try:
                new = self._read(_signature(refused.files))
            except ConfigError as error:
                self._reload_failure = str(error)
                raise
            self._reload_failure = ""
            return new

    def _read(self, signature: _Signature = ()) -> Credentials:
        """Read them; ``signature`` was taken before of the files known so far, so that no change goes unnoticed."""
        new = self._load()
        if new.server.startswith("https:"):
            new.ssl_context()
        is_same = self._current is not None and self._current.files == new.files
        self._signature = signature if is_same else _signature(new.files)
        if not new.verifies_server and (self._current is None or self._current.verifies_server):
            LOG.warning("whoever answers as the API server is believed", extra={"reason": f"{new.origin} says so"})
        self._current = new
        return new


def _signature(paths: tuple[str, ...]) -> _Signature:
    """Return what of some files changes when their content does; it is taken through symbolic links, as tokens are."""
    found: list[tuple[int, int, int, int] | None] = []
    for path in paths:
        try:
            info = os.stat(path)  # noqa: PTH116 - a text from elsewhere
        except OSError:
            found.append(None)
        else:
            found.append((info.st_dev, info.st_ino, info.st_size, info.st_mtime_ns))
    return tuple(found)
