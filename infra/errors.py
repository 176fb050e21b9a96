"""Every error clearwell raises on purpose, in one tree.

    ClearwellError
    ├── ConfigurationError         a setting, a flow parameter or a method name that can not be used
    ├── DataError                  what is wrong is in the data
    │   ├── DatasetNotFoundError   no dataset, or no such version of it
    │   ├── DatasetFormatError     the files can not be read as a dataset
    │   └── ValidationGateError    more rows failed validation than the run accepts
    ├── StageError                 a stage failed; names its input and the command that continues
    ├── StoreError                 a data version, model or cache entry is missing or damaged
    ├── PromotionError             a model version may not get the alias
    │   ├── LeaseHeldError         another promotion is under way; try again
    │   └── LeaseLostError         the promotion took longer than its lease; nothing more was changed
    ├── ErasureError               an erasure can not be finished, or its proof does not hold
    └── ServerError                a server did not start, or does not answer

Methods in ``models`` know nothing of this tree: they raise ``ValueError`` and scikit-learn's ``NotFittedError``.
A message says what was wrong, what was found, and what to do next; the facts stay on the exception as attributes.
"""

from __future__ import annotations

from typing import Any


def visible(text: str) -> str:
    """Text that can be printed: characters that would steer a terminal are written out."""
    return "".join(c if c.isprintable() or c in "\n\t" else ascii(c)[1:-1] for c in text)


class ClearwellError(Exception):
    """Root of the tree. Keyword arguments become attributes.

    Attributes
    ----------
    exit_code : int
        What the command line exits with when this error ends it.
    transient : bool
        Whether the same call may succeed when simply repeated; flows retry only these.
    """

    exit_code = 1
    transient = False

    def __init__(self, message: str, **facts: Any) -> None:
        super().__init__(visible(message))
        self.facts = facts
        for name, value in facts.items():
            setattr(self, name, value)


class ConfigurationError(ClearwellError, ValueError):
    """A setting, a flow parameter or a method name that can not be used."""

    exit_code = 2


class DataError(ClearwellError):
    """What is wrong is in the data."""

    exit_code = 3


class DatasetNotFoundError(DataError, LookupError):
    """No dataset of that name or path, or no such version of it."""


class DatasetFormatError(DataError, ValueError):
    """The files can not be read as a dataset."""


class ValidationGateError(DataError):
    """More rows failed validation than the run accepts."""


class StageError(ClearwellError):
    """A stage failed; the message names its input and the command that continues."""

    exit_code = 4


class StoreError(ClearwellError):
    """A data version, model or cache entry is missing or damaged."""

    exit_code = 5


class PromotionError(ClearwellError):
    """A model version may not get the alias."""

    exit_code = 6


class LeaseHeldError(PromotionError):
    """Another promotion of the same model is under way."""

    transient = True


class LeaseLostError(PromotionError):
    """A promotion took longer than its lease, which somebody else may hold by now."""

    transient = True


class ServerError(ClearwellError):
    """A server did not start, or does not answer."""

    exit_code = 7


_TRANSIENT_NAMES = {  # of the products' own errors, by name: importing them all would take seconds
    "ConnectionError",  # Python's, requests' and botocore's
    "HTTPClientError",
    "OperationalError",  # SQLAlchemy's: the database is away, or locked
    "TimeoutError",
    "TransportError",  # httpx's
}


def is_transient(error: BaseException | None) -> bool:
    """Whether the same call may succeed when simply repeated: a server that is away or busy, not a wrong input."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        if isinstance(error, ClearwellError):
            if error.transient:
                return True
        elif _TRANSIENT_NAMES & {kind.__name__ for kind in type(error).__mro__} or _server_failed(error):
            return True
        error = error.__cause__ or error.__context__
    return False


def _server_failed(error: BaseException) -> bool:
    """Whether an HTTP client's error says 429 or 5xx (botocore), or that no answer came (MLflow)."""
    answer = getattr(error, "response", None)
    if isinstance(answer, dict):
        status = answer.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
        return status == 429 or status >= 500
    status = getattr(answer, "status_code", None)
    if isinstance(status, int):
        return status == 429 or status >= 500
    return type(error).__name__ == "MlflowException" and str(error).startswith("API request to")


class ErasureError(ClearwellError):
    """An erasure can not be finished, or its proof does not hold."""

    exit_code = 8
