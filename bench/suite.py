#!/usr/bin/env python3
"""The mount against the native directory beside it: every case on both, interleaved, in one run.

    cargo build --release -p librorum
    sudo bench/suite.py --dir /path/on/ext4 [--only small,clone] [--rounds 5]

Writes a table and the raw figures to bench/results/, with machine and commit. Ratios are native
time / mounted time (1.00: as fast as the disk), of the medians. Needs root (passthrough, dropping
caches) and, for the unprivileged cases, fusermount3 and setpriv.
"""

import argparse
import json
import os
import platform
import random
import shutil
import statistics
import subprocess
import sys
import tarfile
import time

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
LIBRORUM = os.path.join(ROOT, "target/release/librorum")
NOBODY = 65534
MIB = 1 << 20
BLOCK = random.Random(1).randbytes(MIB)


def run(*command, **options):
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, **options).stdout


def timed(work, *arguments):
    start = time.perf_counter()
    work(*arguments)
    return time.perf_counter() - start


def drop_caches():
    os.sync()
    with open("/proc/sys/vm/drop_caches", "w") as file:
        file.write("3")


class Mount:
    """A mounted volume; `as_nobody` mounts it without privileges."""

    def __init__(self, base, name, as_nobody=False):
        self.volume = os.path.join(base, name + "-volume")
        self.dir = os.path.join(base, name)
        self.prefix = []
        os.makedirs(self.dir)
        if as_nobody:
            os.makedirs(self.volume)
            for path in (self.dir, self.volume):
                os.chown(path, NOBODY, NOBODY)
            os.chmod("/dev/fuse", 0o666)
            self.prefix = ["setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups"]
            run(*self.prefix, LIBRORUM, "format", self.volume)
        self.mount()

    def mount(self):
        told = run(*self.prefix, LIBRORUM, "--json", "mount", self.volume, self.dir, "--background")
        self.pid = json.loads(told)["pid"]

    def unmount(self):
        run(*self.prefix, LIBRORUM, "umount", self.dir)

    def status(self, seal=False):
        arguments = ["--seal"] if seal else []
        return json.loads(run(LIBRORUM, "--json", "status", self.volume, *arguments))[0]

    def peak_memory_bytes(self):
        with open(f"/proc/{self.pid}/status") as file:
            for line in file:
                if line.startswith("VmHWM:"):
                    return int(line.split()[1]) * 1024

    def written_bytes(self):
        """Bytes that the process itself has handed to write(2) and its kin."""
        with open(f"/proc/{self.pid}/io") as file:
            return int(dict(line.split(": ") for line in file.read().splitlines())["wchar"])


class Suite:
    def __init__(self, base, rounds):
        self.rounds = rounds
        self.base = os.path.join(base, "librorum-suite")
        shutil.rmtree(self.base, ignore_errors=True)
        self.native = os.path.join(self.base, "native")
        os.makedirs(self.native)
        os.chmod(self.base, 0o755)
        self.mount = Mount(self.base, "mounted")
        self.rows = []

    def add(self, case, mounted, native, goal, unit="s", note=""):
        ratio = native / mounted if mounted else 0
        self.rows.append(dict(case=case, mounted=mounted, native=native, ratio=ratio, unit=unit,
                              goal=goal, note=note))
        print(f"{case:<44} {mounted:>12.4g} {native:>12.4g} {unit:<5} {ratio:>6.2f}  {goal} {note}",
              flush=True)

    def fact(self, case, value, goal, note=""):
        self.rows.append(dict(case=case, value=value, goal=goal, note=note))
        print(f"{case:<44} {value}  {goal} {note}", flush=True)

    def compare(self, case, work, goal, rounds=None, prepare=None, count=1, unit="s"):
        """Runs `work(directory, round)` on both sides in turn."""
        mounted, native = [], []
        for turn in range(rounds or self.rounds):
            for directory, times in ((self.mount.dir, mounted), (self.native, native)):
                if prepare:
                    prepare(directory)
                times.append(timed(work, directory, turn) / count)
        self.add(case, statistics.median(mounted), statistics.median(native), goal, unit)

    # Cases

    def micro(self):
        told = json.loads(run(LIBRORUM, "--json", "bench", self.mount.dir, "--native", self.native,
                              "--rounds", str(max(self.rounds, 11))))
        for row in told["cases"]:
            self.add(row["case"], row["mounted_us"], row["native_us"], f">= {row['goal']:.2f}", "us")

    def first(self):
        """A new file of 1 GiB until it is durable; sealed too, on our side."""
        def write(directory, turn):
            path = os.path.join(directory, f"first-{turn}")
            with open(path, "wb", buffering=0) as file:
                for index in range(1024):
                    file.write(index.to_bytes(8, "little") + turn.to_bytes(8, "little") + BLOCK[16:])
                os.fsync(file.fileno())

        mounted, native, copied = [], [], []
        for turn in range(3):
            before = self.mount.written_bytes()
            start = time.perf_counter()
            write(self.mount.dir, turn)
            self.mount.status(seal=True)
            directory = os.open(self.mount.dir, os.O_RDONLY)
            os.fsync(directory)
            os.close(directory)
            mounted.append(time.perf_counter() - start)
            copied.append(self.mount.written_bytes() - before)
            native.append(timed(write, self.native, turn))
        self.add("first write of 1 GiB, sealed and durable", statistics.median(mounted),
                 statistics.median(native), ">= 0.70")
        self.fact("bytes the process wrote for it", max(copied), "no file byte copied",
                  "chunk table, metadata journal, index")

    def second(self):
        before = self.mount.status(seal=True)["stored_bytes"]
        shutil.copyfile(os.path.join(self.mount.dir, "first-0"),
                        os.path.join(self.mount.dir, "second"))
        self.mount.status(seal=True)
        # Space is given back in rounds, once it is durable that nothing needs it.
        for _ in range(40):
            after = self.mount.status()["stored_bytes"]
            if after - before < 10 * MIB:
                break
            time.sleep(0.5)
        self.fact("second copy of 1 GiB: stored bytes added", f"{(after - before) / 2**30:.3%}",
                  "< 1 %")

    def unprivileged(self):
        nobody = Mount(self.base, "nobody", as_nobody=True)
        native = os.path.join(self.base, "native-nobody")
        os.makedirs(native)
        os.chown(native, NOBODY, NOBODY)
        # Only nobody may look into nobody's mount.
        script = os.path.join(self.base, "stream.py")
        with open(script, "w") as file:
            file.write(
                "import os, sys, time\n"
                "block = os.urandom(1 << 20); buffer = bytearray(1 << 20)\n"
                "path = sys.argv[2] + '/stream'; start = time.perf_counter()\n"
                "if sys.argv[1] == 'write':\n"
                "    file = os.open(path, os.O_CREAT | os.O_WRONLY, 0o644)\n"
                "    for index in range(512): os.pwrite(file, block, index << 20)\n"
                "    os.close(file)\n"
                "else:\n"
                "    file = os.open(path, os.O_RDONLY)\n"
                "    for index in range(512): assert os.preadv(file, [buffer], index << 20) == 1 << 20\n"
                "print(time.perf_counter() - start)\n")
        os.chmod(script, 0o644)

        def stream(kind, directory):
            return float(run(*nobody.prefix, sys.executable, script, kind, directory))

        figures = {key: ([], []) for key in ("write", "warm", "cold")}
        for _ in range(self.rounds):
            for side, directory in ((0, nobody.dir), (1, native)):
                figures["write"][side].append(stream("write", directory))
                stream("read", directory)
                figures["warm"][side].append(stream("read", directory))
                drop_caches()
                figures["cold"][side].append(stream("read", directory))
        for key, goal in (("write", 0.5), ("warm", 0.9), ("cold", 0.7)):
            mounted, theirs = (statistics.median(times) for times in figures[key])
            name = {"write": "sequential write", "warm": "warm read", "cold": "cold read"}[key]
            self.add(f"unprivileged: {name} 512 MiB", mounted, theirs, f">= {goal}")
        self.fact("memory of the unprivileged mount", mib(nobody.peak_memory_bytes()), "< 256 MiB")
        nobody.unmount()

    def small(self):
        def create(directory, turn, worker=0, count=10000):
            own = os.path.join(directory, f"small-{turn}-{worker}")
            os.mkdir(own)
            for index in range(count):
                file = os.open(f"{own}/{index}", os.O_CREAT | os.O_WRONLY, 0o644)
                os.write(file, BLOCK[:4096])
                os.close(file)

        def create4(directory, turn):
            workers = []
            for worker in range(1, 5):
                pid = os.fork()
                if pid == 0:
                    create(directory, turn, worker, 5000)
                    os._exit(0)
                workers.append(pid)
            for pid in workers:
                assert os.waitpid(pid, 0)[1] == 0

        self.compare("create, write 4 KiB, close: 1 process", create, "5000/s: <= 200 us",
                     count=10000e-6, unit="us")
        self.compare("create, write 4 KiB, close: 4 processes", create4, "10000/s: <= 100 us",
                     count=20000e-6, unit="us")

    def list(self):
        def make(directory):
            tree = os.path.join(directory, "list")
            if not os.path.exists(tree):
                for outer in range(100):
                    os.makedirs(f"{tree}/{outer}")
                    for inner in range(1000):
                        open(f"{tree}/{outer}/{inner}", "w").close()

        def list_all(directory, _turn):
            subprocess.run(["ls", "-lR", os.path.join(directory, "list")], check=True,
                           stdout=subprocess.DEVNULL)

        for directory in (self.mount.dir, self.native):
            make(directory)
            list_all(directory, 0)
        self.compare("ls -lR of 100k files, warm", list_all, "<= 1.5x: >= 0.67")
        mounted, native = [], []
        for turn in range(3):
            self.mount.unmount()
            self.mount.mount()
            mounted.append(timed(list_all, self.mount.dir, turn))
            native.append(timed(list_all, self.native, turn))
        self.add("ls -lR of 100k files, after a remount", statistics.median(mounted),
                 statistics.median(native), "<= 4x: >= 0.25")

    def clone(self):
        source = os.path.join(self.base, "source.git")
        tree = os.path.join(self.base, "source")
        chooser = random.Random(3)
        for index in range(5000):
            folder = f"{tree}/{index % 50}/{index % 7}"
            os.makedirs(folder, exist_ok=True)
            with open(f"{folder}/{index}.txt", "wb") as file:
                file.write(chooser.randbytes(chooser.choice((200, 2000, 8000, 40000))))
        git = ["git", "-C", tree, "-c", "user.name=x", "-c", "user.email=x@x"]
        run("git", "init", "-q", tree)
        run(*git, "add", ".")
        run(*git, "commit", "-qm", "all")
        run("git", "clone", "-q", "--bare", tree, source)

        def clone(directory, turn):
            run("git", "clone", "-q", "--no-local", source, os.path.join(directory, f"clone-{turn}"))

        self.compare("git clone of 5,000 files", clone, "<= 1.5x: >= 0.67")

    def untar(self):
        archive = os.path.join(self.base, "files.tar")
        chooser = random.Random(4)
        with tarfile.open(archive, "w") as tar:
            import io
            for index in range(50000):
                size = chooser.choice((0, 300, 1500, 4000, 12000))
                info = tarfile.TarInfo(f"{index % 500}/{index}")
                info.size = size
                tar.addfile(info, io.BytesIO(BLOCK[index:index + size]))

        def untar(directory, turn):
            own = os.path.join(directory, f"untar-{turn}")
            os.mkdir(own)
            run("tar", "-xf", archive, "-C", own)

        self.compare("untar of 50,000 files", untar, "<= 1.5x: >= 0.67", rounds=3)

    def build(self):
        def prepare(directory):
            own = os.path.join(directory, "build")
            shutil.rmtree(own, ignore_errors=True)
            os.mkdir(own)
            run("git", "clone", "-q", ROOT, os.path.join(own, "source"))

        def build(directory, _turn):
            own = os.path.join(directory, "build")
            environment = dict(os.environ, CARGO_TARGET_DIR=os.path.join(own, "target"))
            run("cargo", "build", "-q", "--offline", "-p", "librorum",
                cwd=os.path.join(own, "source"), env=environment)

        self.compare("cargo build of this project", build, "<= 1.5x: >= 0.67", rounds=2,
                     prepare=prepare)

    def memory(self, case):
        self.fact(f"peak memory of the mount process up to '{case}'",
                  mib(self.mount.peak_memory_bytes()), "< 256 MiB")

    def million(self):
        """Memory with a million files in the volume."""
        own = os.path.join(self.mount.dir, "million")
        os.mkdir(own)
        start = time.perf_counter()
        for outer in range(1000):
            os.mkdir(f"{own}/{outer}")
            for inner in range(1000):
                os.close(os.open(f"{own}/{outer}/{inner}", os.O_CREAT | os.O_WRONLY, 0o644))
        elapsed = time.perf_counter() - start
        self.fact("a million files made", f"{1e6 / elapsed:.0f}/s", "")
        self.fact("peak memory with a million files", mib(self.mount.peak_memory_bytes()), "< 400 MiB")

    def close(self):
        self.mount.unmount()
        shutil.rmtree(self.base, ignore_errors=True)


def mib(count):
    return f"{count / MIB:.0f} MiB"


CASES = ["micro", "first", "second", "unprivileged", "small", "list", "clone", "untar", "build",
         "million"]


def write_results(rows, arguments):
    commit = run("git", "-C", ROOT, "rev-parse", "--short", "HEAD").strip()
    dirty = "-dirty" if run("git", "-C", ROOT, "status", "--porcelain", "--untracked-files=no") else ""
    with open("/proc/cpuinfo") as file:
        cpu = next(line.split(": ")[1].strip() for line in file if line.startswith("model name"))
    disk = run("findmnt", "-no", "FSTYPE", "-T", arguments.dir).strip()
    machine = f"{cpu}, {os.cpu_count()} CPUs, Linux {platform.release()}, {disk}"
    name = f"{time.strftime('%Y-%m-%d-%H%M')}-{commit}{dirty}"
    path = os.path.join(ROOT, "bench/results", name)
    with open(path + ".json", "w") as file:
        json.dump(dict(machine=machine, commit=commit + dirty, load_before=arguments.load,
                       rounds=arguments.rounds, rows=rows), file, indent=1)
    with open(path + ".md", "w") as file:
        file.write(f"# {name}\n\n{machine}. Load before: {arguments.load:.1f}. "
                   f"{arguments.rounds} rounds, interleaved; medians; ratio = native / mounted.\n\n"
                   "| case | mounted | native | ratio | goal |\n|---|---|---|---|---|\n")
        for row in rows:
            if "value" in row:
                file.write(f"| {row['case']} | {row['value']} | | | {row['goal']} |\n")
            else:
                file.write(f"| {row['case']} | {row['mounted']:.4g} {row['unit']} "
                           f"| {row['native']:.4g} {row['unit']} | {row['ratio']:.2f} "
                           f"| {row['goal']} |\n")
    print(path + ".md")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dir", required=True, help="a directory on the native file system")
    parser.add_argument("--only", default=",".join(CASES), help="cases, by comma")
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    arguments.load = os.getloadavg()[0]
    suite = Suite(arguments.dir, arguments.rounds)
    try:
        for case in arguments.only.split(","):
            getattr(suite, case)()
            if case != "million":
                suite.memory(case)
        write_results(suite.rows, arguments)
    finally:
        suite.close()


if __name__ == "__main__":
    main()
