#!/usr/bin/env python3
"""The daemon and its clients against the file system below, in one run.

    cargo build --release -p librorum
    cargo build --release -p librorum-daemon --example transports
    bench/transport.py --dir /path/on/ext4 [--rounds 5]

Bytes and requests over every transport (crates/daemon/examples/transports.rs), then the commands put and
get against cp, all interleaved. Writes a table with the goals and the raw figures to bench/results/, with
machine and commit. Ratios are rate / native rate, or native time / our time, of each round; medians.
"""

import argparse
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import time

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
LIBRORUM = os.path.join(ROOT, "target/release/librorum")
TRANSPORTS = os.path.join(ROOT, "target/release/examples/transports")
MIB = 1 << 20

# What is measured, the goal, and whether more is better.
GOALS = [
    ("read fd / local", 0.95, True),
    ("write fd / local", 0.95, True),
    ("read arena / local", 0.8, True),
    ("write arena / local", 0.8, True),
    ("read grpc uds GB/s", 2.0, True),
    ("write grpc uds GB/s", 2.0, True),
    ("lbru serial requests/s", 50_000, True),
    ("lbru pipelined requests/s", 1_000_000, True),
    ("lbru serial p50 us", 20, False),
    ("lbru beside bulk p99 us", 1000, False),
    ("lbru beside a stalled reader p99 us", 1000, False),
    ("put 1 GiB durable / cp + fsync", 0.8, True),
    ("get 1 GiB / cp", 0.9, True),
    ("put -r 10,000 files / cp -r", 0.5, True),
]


def run(*command, **options):
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, **options).stdout


def timed(*command):
    os.sync()
    start = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - start


def warm_memory():
    """Memory that the host has taken back is dear to touch first."""
    code = "b = bytearray(1536 << 20)\nfor i in range(0, len(b), 4096): b[i] = 1"
    subprocess.run([sys.executable, "-c", code], check=True)


class Commands:
    """put and get through a daemon, against cp."""

    def __init__(self, base):
        self.base = base
        self.volume = os.path.join(base, "volume")
        self.config = os.path.join(base, "librorum.toml")
        self.socket = os.path.join(base, "run/librorum.sock")
        os.makedirs(os.path.join(base, "run"), mode=0o700)
        run(LIBRORUM, "format", self.volume)
        with open(self.config, "w") as file:
            file.write(f"""[daemon]
socket = "{self.socket}"
state_dir = "{base}/state"

[grpc]
listen = []

[[volume]]
name = "main"
path = "{self.volume}"
""")
        self.daemon = subprocess.Popen([LIBRORUM, "daemon", "--config", self.config],
                                       stderr=open(os.path.join(base, "log"), "w"))
        while subprocess.run([LIBRORUM, "ls", "--to", self.socket, "/"], stdout=subprocess.DEVNULL,
                             stderr=subprocess.DEVNULL).returncode != 0:
            if self.daemon.poll() is not None:
                with open(os.path.join(base, "log")) as file:
                    sys.exit(f"the daemon does not start: {file.read()}")
            time.sleep(0.05)
        self.big = os.path.join(base, "big")
        with open(self.big, "wb") as file:
            for _ in range(1024):
                file.write(os.urandom(MIB))
        self.small = os.path.join(base, "small")
        for directory in range(100):
            path = os.path.join(self.small, str(directory))
            os.makedirs(path)
            for index in range(100):
                with open(os.path.join(path, str(index)), "wb") as file:
                    file.write(os.urandom(2048))

    def ours(self, *arguments):
        return timed(LIBRORUM, arguments[0], "--to", self.socket, *arguments[1:])

    def round(self, add):
        copy = os.path.join(self.base, "copy")
        script = 'cp "$1" "$2" && sync "$2"'
        warm_memory()
        native = timed("sh", "-c", script, "sh", self.big, copy)
        os.remove(copy)
        warm_memory()
        mine = self.ours("put", "--durable", self.big, "/big")
        add("put 1 GiB durable / cp + fsync", native / mine)
        warm_memory()
        native = timed("cp", self.big, copy)
        os.remove(copy)
        warm_memory()
        mine = self.ours("get", "/big", copy)
        os.remove(copy)
        add("get 1 GiB / cp", native / mine)
        self.ours("rm", "/big")
        native = timed("cp", "-r", self.small, copy)
        shutil.rmtree(copy)
        mine = self.ours("put", "-r", self.small, "/small")
        add("put -r 10,000 files / cp -r", native / mine)
        native = timed("cp", "-r", self.small, copy)
        shutil.rmtree(copy)
        mine = self.ours("get", "-r", "/small", copy)
        shutil.rmtree(copy)
        add("get -r 10,000 files / cp -r", native / mine)
        self.ours("rm", "-r", "/small")

    def end(self):
        self.daemon.terminate()
        self.daemon.wait()


def write_results(results, arguments):
    commit = run("git", "-C", ROOT, "rev-parse", "--short", "HEAD").strip()
    dirty = "-dirty" if run("git", "-C", ROOT, "status", "--porcelain", "--untracked-files=no") else ""
    with open("/proc/cpuinfo") as file:
        cpu = next(line.split(": ")[1].strip() for line in file if line.startswith("model name"))
    disk = run("findmnt", "-no", "FSTYPE", "-T", arguments.dir).strip()
    machine = f"{cpu}, {os.cpu_count()} CPUs, Linux {platform.release()}, {disk}"
    name = f"{time.strftime('%Y-%m-%d-%H%M')}-{commit}{dirty}-transport"
    path = os.path.join(ROOT, "bench/results", name)
    with open(path + ".json", "w") as file:
        json.dump(dict(machine=machine, commit=commit + dirty, load_before=arguments.load,
                       rounds=arguments.rounds, results=results), file, indent=1)
    lines = [f"# {name}", "", f"{machine}. Load before: {arguments.load:.1f}. "
             f"{arguments.rounds} rounds, interleaved; medians (least to most).", "",
             "| what | goal | median | range | |", "|---|---|---|---|---|"]
    goals = {what: (goal, more) for what, goal, more in GOALS}
    for what in [goal[0] for goal in GOALS] + sorted(set(results) - set(goals)):
        values = results.get(what)
        if not values:
            continue
        median = statistics.median(values)
        goal, met = "", ""
        if what in goals:
            limit, more = goals[what]
            goal = f"{'≥' if more else '≤'} {limit:g}"
            met = "met" if (median >= limit if more else median <= limit) else "**not met**"
        form = "{:,.0f}" if max(values) > 1000 else "{:.3g}"
        spread = f"{form.format(min(values))} to {form.format(max(values))}"
        lines.append(f"| {what} | {goal} | {form.format(median)} | {spread} | {met} |")
    with open(path + ".md", "w") as file:
        file.write("\n".join(lines) + "\n")
    print("\n".join(lines))
    print(f"\nwritten to {path}.md")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dir", required=True, help="a directory on the native file system")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", choices=["transports", "commands"])
    arguments = parser.parse_args()
    arguments.load = os.getloadavg()[0]
    base = os.path.join(arguments.dir, "librorum-transport")
    results = {}

    def add(what, value):
        print(f"{what}: {value:.3g}", file=sys.stderr)
        results.setdefault(what, []).append(value)

    shutil.rmtree(base, ignore_errors=True)
    os.makedirs(base)
    try:
        if arguments.only != "commands":
            measured = run(TRANSPORTS, os.path.join(base, "transports"), str(arguments.rounds))
            results.update(json.loads(measured))
        if arguments.only != "transports":
            commands = Commands(base)
            try:
                for _ in range(arguments.rounds):
                    commands.round(add)
            finally:
                commands.end()
    finally:
        shutil.rmtree(base, ignore_errors=True)
    write_results(results, arguments)


if __name__ == "__main__":
    main()
