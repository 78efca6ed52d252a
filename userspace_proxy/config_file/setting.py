"""What both kinds of documents are made into: values for options of ``run``."""

from attrs import frozen

from userspace_proxy.config_file.documents import Place


@frozen
class Setting:
    """A value that a file has for an option of ``run``."""

    option: str
    """The name of its parameter, as ``metrics_bind_address``."""
    value: object
    """In the form in which the option takes it; not checked beyond its kind."""
    place: Place
