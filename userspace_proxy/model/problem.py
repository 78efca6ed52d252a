"""Problem: a defect in one API object, collected and shown, never raised."""

from enum import StrEnum

from attrs import frozen


class Severity(StrEnum):
    """How bad a Problem is."""

    ERROR = "error"
    """Something the object asks for is not served."""
    WARNING = "warning"
    """All is served, though probably not as its author meant."""


@frozen(order=True)
class Problem:
    """A defect in one API object, as one sentence with the place it is about."""

    severity: Severity
    subject: str
    """The object, as ``Service namespace/name``; ``""`` where no object could be made out."""
    field: str
    """Path of the field inside the object, as ``spec.ports[0].nodePort``; ``""`` when it is about the whole."""
    text: str
    """What is wrong and what to do, without a full stop."""
    origin: str = ""
    """Where the object was read, as ``shop.yaml, document 2, line 14``; ``""`` where the API server is the origin."""

    def __str__(self) -> str:
        """Return ``origin: subject: field: text``, without the parts that are empty."""
        return ": ".join(part for part in (self.origin, self.subject, self.field, self.text) if part)
