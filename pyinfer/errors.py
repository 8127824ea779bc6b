"""What can go wrong, as one tree of exceptions. Each message is one sentence: expected, found, where."""

__all__ = [
    "Cancelled",
    "ContextFullError",
    "DownloadError",
    "MemoryLimitError",
    "ModelFileError",
    "PyinferError",
    "RequestError",
    "UnsupportedError",
]


class PyinferError(Exception):
    """Everything that pyinfer raises on purpose."""


class ModelFileError(PyinferError, ValueError):
    """A file that is not what it should be: cut, mislabelled, inconsistent or hostile."""


class UnsupportedError(ModelFileError):
    """A well-formed file that asks for something pyinfer does not do; the message names it."""


class RequestError(PyinferError, ValueError):
    """An argument outside its documented limits, or a call on a closed object."""


class ContextFullError(RequestError):
    """More tokens than the context of the session holds."""


class MemoryLimitError(PyinferError, MemoryError):
    """Memory needed is more than memory free; the message has both figures."""


class Cancelled(PyinferError):
    """The step was cancelled by `cancel()`; the session is usable and holds what it held before."""


class DownloadError(PyinferError, OSError):
    """A model could not be fetched or is not the file it should be."""


def plain(text: str) -> str:
    """The text with everything spelled out that a terminal would obey: names in files may hold anything."""
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)
