"""The package against a daemon: LIBRORUM_SOCKET is its socket."""

import array
import ast
import errno
import gc
import importlib.resources
import os
import pathlib
import threading
import unittest

import librorum

SOCKET = os.environ["LIBRORUM_SOCKET"]
WAYS = [[], ["fd"], ["fd", "arena"], ["fd", "inline"]]


def noise(length):
    return os.urandom(length)


class Contents(unittest.TestCase):
    def test_they_are_the_same_over_every_way(self):
        for way, forbid in enumerate(WAYS):
            with librorum.Client(SOCKET, forbid=forbid) as client:
                for length in [0, 1, 5000, 65_537, 3_000_001]:
                    data = noise(length)
                    path = f"python-{way}-{length}"
                    with client.create(path, size_hint=length) as upload:
                        for at in range(0, length, 1_000_000):
                            upload.write(memoryview(data)[at : at + 1_000_000])
                    with client.open(path) as file:
                        self.assertEqual(file.size, length)
                        buffer = bytearray(length + 7)
                        self.assertEqual(file.read_into(buffer), length)
                        self.assertEqual(buffer[:length], data)
                        mapping = file.map(length // 3)
                    # It outlives its file.
                    self.assertEqual(memoryview(mapping), data[length // 3 :])

    def test_they_are_written_in_any_order_from_any_buffer(self):
        with librorum.Client(SOCKET) as client:
            upload = client.create("any-order", mode=0o600)
            upload.write_at(8, array.array("d", [1.0, 2.0]))
            upload.write_at(0, b"12345678")
            entry = upload.commit()
            self.assertEqual((entry.size, entry.mode), (24, 0o600))
            numbers = array.array("d", [0.0, 0.0])
            file = client.open("any-order")
            self.assertEqual(file.read_into(numbers, 8), 16)
            self.assertEqual(list(numbers), [1.0, 2.0])
            part = bytearray(5)
            self.assertEqual([file.readinto(part) for _ in range(6)], [5, 5, 5, 5, 4, 0])
            self.assertEqual((file.seek(-4, 2), file.readinto(part), file.tell()), (20, 4, 24))

    def test_a_view_keeps_its_bytes(self):
        with librorum.Client(SOCKET) as client:
            data = noise(1_000_000)
            with client.create("viewed", size_hint=len(data)) as upload:
                upload.write(data)
            # What is not sealed may still change, and is copied.
            client.sync(seal=True)
            view = memoryview(client.open("viewed").map(1000, 500_000))
            self.assertTrue(view.readonly)
            self.assertEqual(view.obj.in_place, True)
        gc.collect()
        self.assertEqual(view, data[1000:501_000])
        with self.assertRaises(TypeError):
            view[0] = 1

    def test_buffers_that_do_not_fit_are_refused(self):
        with librorum.Client(SOCKET) as client:
            with client.create("refused") as upload:
                upload.write(b"words")
                with self.assertRaises(TypeError):
                    upload.write("text")
            file = client.open("refused")
            with self.assertRaises(BufferError):
                file.read_into(b"read-only")
            with self.assertRaises(BufferError):
                file.read_into(memoryview(bytearray(10))[::2])


class Uploads(unittest.TestCase):
    def test_an_exception_leaves_no_file(self):
        with librorum.Client(SOCKET) as client:
            with self.assertRaises(KeyError):
                with client.create("no-file") as upload:
                    upload.write(b"words")
                    raise KeyError
            with self.assertRaises(FileNotFoundError):
                client.stat("no-file")
            upload = client.create("no-file")
            upload.abort()
            for closed in [upload.abort, upload.commit, lambda: upload.write(b"")]:
                self.assertRaises(ValueError, closed)

    def test_one_with_a_key_is_found_again(self):
        with librorum.Client(SOCKET, forbid=["fd"]) as client:
            data = noise(500_000)
            first = client.create("keyed", size_hint=len(data), key=b"k" * 16)
            first.write(data[:300_000])
            first.close()
        with librorum.Client(SOCKET, forbid=["fd"]) as client:
            with client.create("keyed", size_hint=len(data), key=b"k" * 16) as upload:
                self.assertEqual(upload.received, [(0, 300_000)])
                upload.write_at(300_000, data[300_000:])
            self.assertEqual(client.stat("keyed").size, len(data))


class SmallOperations(unittest.TestCase):
    def test_trees(self):
        with librorum.Client(pathlib.Path(SOCKET)) as client:
            client.mkdir("tree/a", 0o755, parents=True)
            with self.assertRaises(FileExistsError) as raised:
                client.mkdir("tree")
            self.assertEqual(raised.exception.filename, "tree")
            with client.create(b"tree/a/\xff", mtime_ns=-1) as upload:
                upload.write(b"words")
            entry = client.copy(b"tree/a/\xff", "tree/copy", replace="no")
            self.assertEqual((entry.kind, entry.size, entry.nlink), ("regular", 5, 1))
            self.assertEqual(client.stat(b"tree/a/\xff").mtime_ns, -1)
            client.rename("tree/copy", "tree/renamed")
            self.assertEqual(client.symlink("tree/link", "a").symlink_target, b"a")
            paths = {entry.path for entry in client.list("tree", recursive=True)}
            self.assertEqual(paths, {b"a", b"a/\xff", b"renamed", b"link"})
            client.sync()
            with self.assertRaises(IsADirectoryError):
                client.remove("tree")
            with self.assertRaises(OSError) as raised:
                client.remove("tree", directory=True)
            self.assertEqual(raised.exception.errno, errno.ENOTEMPTY)
            self.assertEqual(client.remove("tree", recursive=True), 5)
            client.remove("tree", missing_ok=True)

    def test_failures_say_what_they_are(self):
        with librorum.Client(SOCKET) as client:
            with self.assertRaises(FileNotFoundError) as raised:
                client.open("no")
            failure = raised.exception
            self.assertEqual((failure.errno, failure.kind, failure.code), (errno.ENOENT, "NotFound", 5))
            self.assertRaises(FileNotFoundError, list, client.list("no"))
            self.assertRaises(ValueError, client.rename, "a", "b", replace="perhaps")
            self.assertRaises(OSError, client.stat, "a/../b")
        self.assertRaises(ValueError, client.stat, "")
        client.close()
        self.assertRaises(ConnectionError, librorum.Client, "/no/such/socket", retry_for=0)
        self.assertRaises(ValueError, librorum.Client, SOCKET, forbid=["pigeons"])
        self.assertTrue(issubclass(librorum.Error, OSError))

    def test_ways_are_noted(self):
        with librorum.Client(SOCKET) as client:
            with client.create("noted", size_hint=1_000_000) as upload:
                upload.write(bytes(1_000_000))
            operation, path, way, count, _ = client.transports()[-1]
            self.assertEqual((operation, path, count), ("WRITE", b"noted", 1_000_000))
            self.assertIn(way, ["fd", "arena", "inline"])


class Threads(unittest.TestCase):
    def test_many_read_at_once(self):
        data = noise(2_000_000)
        wrong = []
        with librorum.Client(SOCKET) as client:
            with client.create("threads", size_hint=len(data)) as upload:
                upload.write(data)
            file = client.open("threads")

            def read(seed):
                buffer = bytearray(10_000)
                for turn in range(100):
                    offset = (seed * 7919 + turn * 104_729) % (len(data) - len(buffer))
                    file.read_into(buffer, offset)
                    if buffer != data[offset : offset + len(buffer)]:
                        wrong.append(offset)

            threads = [threading.Thread(target=read, args=(seed,)) for seed in range(8)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        self.assertEqual(wrong, [])


class Stubs(unittest.TestCase):
    """The stubs name what there is, and nothing else."""

    def test_they_name_what_there_is(self):
        package = importlib.resources.files(librorum)
        self.assertTrue((package / "py.typed").is_file())
        tree = ast.parse((package / "__init__.pyi").read_text())
        classes = {node.name: node for node in tree.body if isinstance(node, ast.ClassDef)}
        self.assertEqual(set(classes), set(librorum.__all__))
        for name, node in classes.items():
            functions = (ast.FunctionDef, ast.AnnAssign)
            stubbed = {
                item.name if isinstance(item, ast.FunctionDef) else item.target.id
                for item in node.body
                if isinstance(item, functions)
            }
            there = set(vars(getattr(librorum, name)))
            public = {method for method in there if not method.startswith("_")}
            if name != "Error":
                self.assertEqual({stub for stub in stubbed if not stub.startswith("_")}, public)
                special = {stub for stub in stubbed if stub.startswith("__")}
                # Before 3.12 the buffer protocol has no name in Python.
                self.assertLessEqual(special - {"__buffer__"}, there, name)


if __name__ == "__main__":
    unittest.main(verbosity=2)
