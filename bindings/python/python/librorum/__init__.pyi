"""The librorum client: files of a daemon, read into buffers or seen in place.

Every failure is an `OSError`: with an errno the class that Python has for it, such as
`FileNotFoundError`; `ConnectionError` when the daemon cannot be reached, `TimeoutError` when the
deadline passed, else `Error`. All have `kind`, the finer reason, `code`, that of gRPC, and
`retry_after`, in seconds. To use what was closed is a `ValueError`, as with files of Python.

All objects may be used by any number of threads; the interpreter is let go of around all that waits.
"""

import builtins
import os
from collections.abc import Iterator, Sequence
from types import TracebackType
from typing import Any, Literal, final

# What has the buffer protocol: bytes, bytearray, memoryview, array, numpy.ndarray. Contiguous ones only.
_Buffer = Any
_Path = str | bytes | os.PathLike[str] | os.PathLike[bytes]

__version__: str

__all__ = [
    "Client",
    "Entry",
    "Error",
    "Listing",
    "Mapping",
    "RemoteFile",
    "Upload",
]

class Error(OSError):
    """A failure for which Python has no exception of its own."""

    kind: str
    code: int
    retry_after: float

@final
class Client:
    """A connection to a daemon."""

    def __new__(
        cls,
        target: _Path,
        *,
        token: bytes = ...,
        name: str | None = None,
        expected_uid: int | None = None,
        forbid: Sequence[Literal["fd", "arena", "inline"]] = ...,
        connect_timeout: float = 10.0,
        retry_for: float = 10.0,
        deadline: float | None = None,
    ) -> Client:
        """Connects to the socket at a path, or by gRPC to http://, https:// or unix:.

        `forbid` has ways that bytes must not take; `deadline` is for each call, in seconds.
        """

    def stat(self, path: _Path, *, volume: str = "") -> Entry:
        """What a name stands for."""

    def list(self, path: _Path | None = None, *, recursive: bool = False, volume: str = "") -> Listing:
        """The entries of a directory; with `recursive` depth first, a directory before what is in it."""

    def mkdir(
        self, path: _Path, mode: int = 0o777, *, parents: bool = False, volume: str = ""
    ) -> Entry:
        """Makes a directory; with `parents` what lacks on the way, and what is there is no error."""

    def remove(
        self,
        path: _Path,
        *,
        recursive: bool = False,
        missing_ok: bool = False,
        directory: bool = False,
        volume: str = "",
    ) -> int:
        """Removes a file, with `directory` an empty directory, with `recursive` a tree.

        Answers how much was removed. In a tree all is removed that can be, then the first failure raised.
        """

    def rename(
        self,
        source: _Path,
        target: _Path,
        *,
        replace: Literal["yes", "no", "exchange"] = "yes",
        volume: str = "",
    ) -> Entry:
        """Renames, or exchanges two names."""

    def copy(
        self,
        source: _Path,
        target: _Path,
        *,
        replace: Literal["yes", "no"] = "yes",
        volume: str = "",
    ) -> Entry:
        """Copies a file without moving its bytes."""

    def symlink(self, path: _Path, target: _Path, *, volume: str = "") -> Entry:
        """Makes a symbolic link at `path` that leads to `target`."""

    def sync(self, *, seal: bool = False, volume: str = "") -> None:
        """Makes durable what was written before; with `seal`, seals what is closed first."""

    def open(self, path: _Path, *, volume: str = "") -> RemoteFile:
        """Opens a file for reading."""

    def create(
        self,
        path: _Path,
        *,
        size_hint: int = 0,
        mode: int = 0o644,
        replace: Literal["yes", "no"] = "yes",
        durable: bool = False,
        mtime_ns: int | None = None,
        key: bytes | None = None,
        blake3: bytes | None = None,
        volume: str = "",
    ) -> Upload:
        """Begins to write a file, which appears whole when it is committed.

        With a `key` of 16 bytes an upload is found again after a lost connection. `blake3` is what the
        content has to be. With `durable` the commit ends when the file would survive a power cut.
        """

    def transports(self) -> builtins.list[tuple[str, bytes, str, int, str | None]]:
        """How the newest operations moved their bytes: operation, path, way, bytes, why not faster."""

    def close(self) -> None:
        """Closes it. Files and uploads of it go on until they are closed."""

    def __enter__(self) -> Client: ...
    def __exit__(self, *_exception: object) -> None: ...

@final
class Entry:
    """What a name stands for."""

    @property
    def path(self) -> bytes:
        """As asked for; of a listing, relative to its directory."""

    @property
    def ino(self) -> int: ...
    @property
    def kind(
        self,
    ) -> Literal[
        "unknown", "regular", "directory", "symlink", "block_device", "char_device", "fifo", "socket"
    ]: ...
    @property
    def mode(self) -> int:
        """The low 12 bits of `st_mode`."""

    @property
    def nlink(self) -> int: ...
    @property
    def uid(self) -> int: ...
    @property
    def gid(self) -> int: ...
    @property
    def size(self) -> int: ...
    @property
    def allocated(self) -> int: ...
    @property
    def content_version(self) -> int:
        """Changes whenever the content does."""

    @property
    def atime_ns(self) -> int: ...
    @property
    def mtime_ns(self) -> int: ...
    @property
    def ctime_ns(self) -> int: ...
    @property
    def btime_ns(self) -> int: ...
    @property
    def symlink_target(self) -> bytes: ...

@final
class Listing(Iterator[Entry]):
    """The entries of a directory, asked for page by page.

    What could not be read in a recursive listing is raised at the end, one exception each time.
    """

    def __iter__(self) -> Listing: ...
    def __next__(self) -> Entry: ...

@final
class RemoteFile:
    """A file that is open for reading."""

    @property
    def entry(self) -> Entry: ...
    @property
    def size(self) -> int: ...
    def read_into(self, buffer: _Buffer, offset: int = 0) -> int:
        """Fills a buffer from `offset` on. Fewer bytes than it holds only at the end of the file."""

    def readinto(self, buffer: _Buffer) -> int:
        """The same from where the last call ended, as `io.RawIOBase` has it."""

    def tell(self) -> int: ...
    def seek(self, offset: int, whence: int = 0) -> int: ...
    def map(self, offset: int = 0, length: int | None = None) -> Mapping:
        """Bytes in place, if they lie in one piece of a file that the daemon lends; else in a buffer."""

    def close(self) -> None:
        """Closes it. Mappings stay."""

    def __enter__(self) -> RemoteFile: ...
    def __exit__(self, *_exception: object) -> None: ...

@final
class Mapping:
    """Bytes of a file by the buffer protocol: `memoryview(mapping)` copies nothing.

    They are there as long as this or any view of it is.
    """

    @property
    def in_place(self) -> bool:
        """Whether no byte was copied to make it."""

    def __len__(self) -> int: ...
    def __buffer__(self, flags: int, /) -> memoryview: ...

@final
class Upload:
    """A file that is being written. In a `with` statement it is committed at the end, unless an
    exception is raised; without a commit nobody ever sees it.
    """

    def write(self, data: _Buffer) -> int:
        """Writes all of a buffer, from where the last call ended."""

    def write_at(self, offset: int, data: _Buffer) -> None:
        """Writes all of a buffer at an offset."""

    @property
    def received(self) -> list[tuple[int, int]]:
        """What the daemon had of an upload with a key when it was opened: ranges, the end exclusive."""

    def commit(self) -> Entry:
        """Publishes the file, and closes the upload, also if that fails."""

    def abort(self) -> None:
        """Gives it up, also if it has a key."""

    def close(self) -> None:
        """Ends it without a commit; with a key it can be begun again."""

    def __enter__(self) -> Upload: ...
    def __exit__(
        self,
        exception: type[BaseException] | None,
        *_rest: BaseException | TracebackType | None,
    ) -> None: ...
