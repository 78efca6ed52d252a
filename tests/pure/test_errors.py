"""Tests of errors."""

import pytest

from userspace_proxy import errors
from userspace_proxy.errors import ApiError, ManifestError, UserspaceProxyError


def _classes() -> list[type[Exception]]:
    return [one for one in vars(errors).values() if isinstance(one, type) and issubclass(one, Exception)]


def test_errors_base_refuses_to_be_raised() -> None:
    """It says nothing itself, so nobody can raise it instead of saying what failed."""
    with pytest.raises(TypeError, match="subclass"):
        raise UserspaceProxyError("something failed")


@pytest.mark.parametrize("class_", [one for one in _classes() if one not in {UserspaceProxyError, ApiError}])
def test_errors_each_class_carries_its_sentence_and_has_the_common_base(class_: type[Exception]) -> None:
    """One ``except`` of the base catches all that this package says to its user."""
    error = class_("the port is in use")
    assert isinstance(error, UserspaceProxyError)
    assert str(error) == "the port is in use"


def test_manifest_error_knows_its_place_as_far_as_told() -> None:
    """Line and column count from 1; 0 says that they are not known."""
    assert (ManifestError("x").line, ManifestError("x").column) == (0, 0)
    assert (ManifestError("x", 3, 7).line, ManifestError("x", 3, 7).column) == (3, 7)


def test_api_error_knows_what_kind_it_is_and_how_long_to_wait() -> None:
    """The reason is for metrics and ``except``, the text for the user."""
    error = ApiError("the server is busy", "overloaded", 3.0)
    assert isinstance(error, UserspaceProxyError)
    assert (str(error), error.reason, error.retry_after_s) == ("the server is busy", "overloaded", 3.0)
    assert ApiError("x", "cut").retry_after_s == 0.0
