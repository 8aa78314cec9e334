"""The librorum client: files of a daemon, read into buffers or seen in place."""

from ._librorum import (
    VERSION as __version__,
    Client,
    Entry,
    Error,
    Listing,
    Mapping,
    RemoteFile,
    Upload,
)

__all__ = [
    "Client",
    "Entry",
    "Error",
    "Listing",
    "Mapping",
    "RemoteFile",
    "Upload",
]
