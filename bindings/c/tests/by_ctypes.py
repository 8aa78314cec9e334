"""The C interface from Python, with nothing but ctypes: by_ctypes.py LIBRARY SOCKET."""

import ctypes
import errno
import sys
from ctypes import byref, c_char_p, c_int32, c_size_t, c_uint32, c_uint64, c_void_p


class Time(ctypes.Structure):
    _fields_ = [("seconds", ctypes.c_int64), ("nanos", c_uint32), ("reserved", c_uint32)]


class Entry(ctypes.Structure):
    _fields_ = [
        ("ino", c_uint64),
        ("kind", c_uint32),
        ("mode", c_uint32),
        ("nlink", c_uint32),
        ("uid", c_uint32),
        ("gid", c_uint32),
        ("rdev", c_uint32),
        ("size_bytes", c_uint64),
        ("allocated_bytes", c_uint64),
        ("content_version", c_uint64),
        ("atime", Time),
        ("mtime", Time),
        ("ctime", Time),
        ("btime", Time),
    ]


class Error(ctypes.Structure):
    _fields_ = [
        ("code", c_int32),
        ("os_errno", c_int32),
        ("retry_after_ms", c_uint32),
        ("kind", c_char_p),
        ("message", c_char_p),
    ]


def load(path):
    library = ctypes.CDLL(path)
    handle, out = c_uint64, ctypes.POINTER(c_uint64)
    entry, size = ctypes.POINTER(Entry), ctypes.POINTER(c_size_t)
    signatures = {
        "lb_connect": (c_char_p, c_void_p, out),
        "lb_disconnect": (handle,),
        "lb_stat": (handle, c_char_p, c_char_p, entry),
        "lb_mkdir": (handle, c_char_p, c_char_p, c_uint32, c_uint32, entry),
        "lb_remove": (handle, c_char_p, c_char_p, c_uint32, out),
        "lb_list": (handle, c_char_p, c_char_p, c_uint32, out),
        "lb_list_next": (handle, entry, c_char_p, c_size_t, size),
        "lb_list_close": (handle,),
        "lb_open": (handle, c_char_p, c_char_p, out, entry),
        "lb_read_into": (handle, c_uint64, c_void_p, c_size_t, size),
        "lb_map_range": (handle, c_uint64, c_size_t, out, ctypes.POINTER(c_void_p), size),
        "lb_unmap": (handle,),
        "lb_close": (handle,),
        "lb_write_begin": (handle, c_char_p, c_char_p, c_void_p, out),
        "lb_write": (handle, c_uint64, c_void_p, c_size_t),
        "lb_write_commit": (handle, entry),
    }
    for name, arguments in signatures.items():
        function = getattr(library, name)
        function.argtypes, function.restype = arguments, c_int32
    library.lb_last_error.restype = ctypes.POINTER(Error)
    library.lb_abi_version.restype = c_uint32
    return library


def main():
    library = load(sys.argv[1])
    assert library.lb_abi_version() >> 16 == 1

    def ok(code):
        error = library.lb_last_error().contents
        assert code == 0, (code, error.kind, error.message)

    client, entry, length = c_uint64(), Entry(), c_size_t()
    ok(library.lb_connect(sys.argv[2].encode(), None, byref(client)))
    ok(library.lb_mkdir(client, None, b"python", 0o755, 0, byref(entry)))
    assert entry.kind == 2 and entry.mode == 0o755

    data = bytes(range(256)) * 4000
    upload = c_uint64()
    ok(library.lb_write_begin(client, None, b"python/file", None, byref(upload)))
    for at in range(0, len(data), 300_000):
        part = data[at : at + 300_000]
        ok(library.lb_write(upload, at, part, len(part)))
    ok(library.lb_write_commit(upload, byref(entry)))
    assert entry.size_bytes == len(data)

    file = c_uint64()
    ok(library.lb_open(client, None, b"python/file", byref(file), None))
    buffer = ctypes.create_string_buffer(len(data) + 10)
    ok(library.lb_read_into(file, 0, buffer, len(buffer), byref(length)))
    assert length.value == len(data) and buffer.raw[: len(data)] == data
    mapping, place = c_uint64(), c_void_p()
    ok(library.lb_map_range(file, 1000, 5000, byref(mapping), byref(place), byref(length)))
    ok(library.lb_close(file))
    assert ctypes.string_at(place, length.value) == data[1000:6000]
    ok(library.lb_unmap(mapping))
    assert library.lb_unmap(mapping) == 3

    listing, path = c_uint64(), ctypes.create_string_buffer(4096)
    ok(library.lb_list(client, None, b"python", 0, byref(listing)))
    ok(library.lb_list_next(listing, byref(entry), path, len(path), byref(length)))
    assert path.value == b"file" and entry.size_bytes == len(data)
    assert library.lb_list_next(listing, byref(entry), path, len(path), byref(length)) == -1
    ok(library.lb_list_close(listing))

    assert library.lb_stat(client, None, b"no", byref(entry)) == 5
    error = library.lb_last_error().contents
    assert error.code == 5 and error.os_errno == errno.ENOENT and error.kind == b"NotFound"
    ok(library.lb_remove(client, None, b"python", 1, None))
    ok(library.lb_disconnect(client))


main()
