#!/usr/bin/env python3
"""fdu against every disk-usage walker that is installed: warm, cold, listing, CPU and memory.

    bench/walk.py --install /path/for/peers
    sudo bench/walk.py --dir /path/on/ext4 --tools /path/for/peers [--only mixed,flat] [--rounds 9]

What always holds:

* A tool is timed on a tree only if its total there is GNU du's (its count, when listing). Otherwise
  the table says by how much it differs and the tool takes no part in the ratios of that tree.
* Rounds are interleaved: each runs every tool once, and begins one tool later than the last.
* A sample during which others used more than 15 % of the CPUs is dropped and taken again. When the
  patience for that is used up, such samples stand and are marked `~`: then only CPU time counts.
* Figures are medians. Ratios are time / time of the reference: below 1 is faster than it.

Writes a table, the raw samples and a plot to bench/results/, with machine and commit. Cold runs
need root (dropping caches).
"""

import argparse
import dataclasses
import html
import json
import os
import platform
import re
import shutil
import statistics
import subprocess
import sys
import time

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
# How many times its scale the generator makes of a tree: flat has 1M names at scale 100.
TREES = {"wide": 1, "deep": 1, "flat": 5, "mixed": 1, "snap": 1, "chain": 1, "small": 1, "empty": 1}
COLD_TREES = ("mixed", "wide", "deep", "flat", "snap")
LIST_TREES = ("mixed", "wide", "deep", "flat", "snap")
FOREIGN_MAX = 0.15
CPUS = sorted(os.sched_getaffinity(0))
TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")

# Peak memory is inherited through exec: a child that this interpreter starts, by fork or by
# posix_spawn, is told to have needed at least what the interpreter needs. So a small program starts
# it, which also keeps the interpreter out of the measured time.
LAUNCHER = r"""
use std::{env, ffi::c_int, process::{Command, Stdio}, time::Instant};
#[repr(C)]
#[derive(Default)]
struct Usage { user: [i64; 2], system: [i64; 2], peak_kib: i64, rest: [i64; 13] }
extern "C" { fn wait4(pid: c_int, status: *mut c_int, options: c_int, usage: *mut Usage) -> c_int; }
fn main() {
    let mut arguments = env::args_os().skip(1);
    let repeats: u32 = arguments.next().unwrap().to_str().unwrap().parse().unwrap();
    let program = arguments.next().unwrap();
    let mut command = Command::new(program);
    command.args(arguments).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    let (mut wall_ns, mut user_us, mut system_us, mut peak_kib, mut failed) = (0, 0, 0, 0, 0);
    for _ in 0..repeats {
        let (mut status, mut usage) = (0, Usage::default());
        let start = Instant::now();
        let child = command.spawn().unwrap();
        // SAFETY: both pointers are to live values of the layout that wait4(2) has on 64-bit Linux.
        let pid = unsafe { wait4(child.id() as c_int, &mut status, 0, &mut usage) };
        wall_ns += start.elapsed().as_nanos();
        assert!(pid > 0);
        user_us += usage.user[0] * 1_000_000 + usage.user[1];
        system_us += usage.system[0] * 1_000_000 + usage.system[1];
        peak_kib = peak_kib.max(usage.peak_kib);
        if status != 0 { failed = status; }
    }
    println!("{wall_ns} {user_us} {system_us} {peak_kib} {failed}");
}
"""

CARGO_PEERS = ["diskus", "parallel-disk-usage", "du-dust", "dua-cli", "fd-find", "uu_du"]
DEBIAN_PEERS = ["bfs", "gdu", "fd-find"]


def say(text):
    print(text, file=sys.stderr, flush=True)


def run(*command, **options):
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, **options).stdout


def install(directory):
    """Peers from crates.io, and from Debian where that is what this is."""
    os.makedirs(directory, exist_ok=True)
    directory = os.path.abspath(directory)
    os.nice(10)
    environment = dict(os.environ)
    environment.setdefault("CARGO_TARGET_DIR", os.path.join(directory, "target"))
    failed = []
    commands = [["cargo", "install", "--root", directory, "--locked", name]
                for name in CARGO_PEERS]
    if shutil.which("apt-get") and os.geteuid() == 0:
        commands += [["apt-get", "install", "-y", "--no-install-recommends", name]
                     for name in DEBIAN_PEERS]
    for command in commands:
        say(" ".join(command))
        try:
            subprocess.run(command, check=True, env=environment, timeout=1800)
        except (subprocess.SubprocessError, OSError) as error:
            failed.append(f"{command[-1]}: {error}")
    for line in failed:
        say(f"not installed: {line}")
    return 1 if failed else 0


# Tools

@dataclasses.dataclass
class Tool:
    """A program under test. `family` is `ours`, `floor`, `gnu`, `rust` or `other`."""

    name: str
    family: str
    # What is timed, without the tree; and what prints the total, with `read` to understand it.
    timed: list
    total: list
    read: object
    unit: int = 1
    # The option that sets the number of threads; None if one thread walks or nothing can be set.
    threads: object = None
    is_parallel: bool = True
    version: str = ""

    def with_threads(self, count):
        timed = self.timed[:1] + self.threads(count) + self.timed[1:]
        return dataclasses.replace(self, name=f"{self.name} ({count} threads)", timed=timed)


def first_number(text):
    """The first number of the last line, as most tools print a total."""
    lines = [line for line in text.splitlines() if line.strip()]
    return int(re.search(r"\d+", lines[-1]).group()) if lines else None


def tree_top(text):
    """pdu prints the root last, but for remarks on hard links."""
    return first_number([line for line in text.splitlines() if "┌" in line][-1])


def line_count(text):
    return text.count("\n")


def find_program(names, directory, is_it):
    """The first program of one of these names, in `directory` or on PATH, that says it is it."""
    places = [os.path.join(directory, "bin"), directory] if directory else []
    for place in places + os.environ.get("PATH", "").split(":"):
        for name in names:
            path = os.path.join(place, name)
            if os.access(path, os.X_OK) and os.path.isfile(path):
                told = subprocess.run([path, "--version"], stdout=subprocess.PIPE,
                                      stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL)
                text = told.stdout.decode(errors="replace").strip()
                if re.search(is_it, text):
                    line = text.splitlines()[0]
                    return path, re.sub(r"\s+", " ", line)
    return None, None


def usage_tools(built, tools_dir, empty):
    """Ours, the floor, and the peers that were found."""
    fdu = built["fdu"]
    summary = [fdu, "-s", "-B1"]
    count = len(CPUS)
    tools = []
    told = subprocess.run([*summary, empty], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    if told.returncode == 0:
        tools.append(Tool("fdu", "ours", [fdu, "-s"], summary, first_number))
    else:
        tools.append(Tool("fdu", "ours", [fdu], [fdu], first_number, unit=1024))

    def floor_total(text):
        return int(text.split()[2])

    floor = [built["floor"], str(count)]
    tools.append(Tool(f"floor, {count} threads", "floor", floor, floor, floor_total, unit=1024))

    def add(name, family, names, is_it, timed, total, threads=None, is_parallel=True,
            read=first_number):
        path, version = find_program(names, tools_dir, is_it)
        if path is None:
            say(f"not found: {name}")
            return
        tools.append(Tool(name, family, [path, *timed], [path, *total], read,
                          threads=threads, is_parallel=is_parallel, version=version))

    add("GNU du", "gnu", ["du", "gnudu"], r"GNU coreutils", ["-s"], ["-s", "-B1"],
        is_parallel=False)
    add("diskus", "rust", ["diskus"], r"diskus \d", [], [], lambda n: ["-j", str(n)])
    pdu = ["--deduplicate-hardlinks", "--max-depth=1"]
    add("pdu", "rust", ["pdu"], r"pdu \d", pdu, ["--bytes-format=plain", *pdu],
        lambda n: [f"--threads={n}"], read=tree_top)
    add("dust", "rust", ["dust"], r"Dust \d", ["-d0", "-P"],
        ["-d0", "-P", "-o", "b", "-b", "-c"], lambda n: ["-T", str(n)])
    add("dua", "rust", ["dua"], r"dua \d", ["aggregate"], ["-f", "bytes", "aggregate"],
        lambda n: ["-t", str(n)])
    add("uutils du", "rust", ["du", "uu_du"], r"^(?!.*GNU)(uu_)?du .*\d", ["-s"],
        ["-s", "-B1"], is_parallel=False)
    add("gdu", "other", ["gdu", "gdu-go"], r"Version:\s+v?\d", ["-npc"],
        ["-npcs", "--no-prefix"])
    if not any(tool.family == "gnu" for tool in tools):
        sys.exit("GNU du is needed: its totals are what is right")
    return tools


def list_tools(built, tools_dir):
    """What walks without metadata. Totals count names, the tree's own not included."""
    count = str(len(CPUS))

    def names(text):
        return int(text.split()[0])

    # Whether ours counts the root itself is its own affair.
    def ours(text):
        return names(text.splitlines()[-1])

    tools = [
        Tool("fdu's walk", "ours", [built["list"], "0"], [built["list"], "0"], ours),
        Tool(f"floor, {count} threads", "floor", [built["floor"], "-w", count],
             [built["floor"], "-w", count], names),
    ]

    def below(text):
        return line_count(text) - 1

    path, version = find_program(["find"], tools_dir, r"GNU findutils")
    if path:
        tools.append(Tool("find", "gnu", [path, "{}", "-false"], [path, "{}"], below,
                          is_parallel=False, version=version))
    path, version = find_program(["fd", "fdfind"], tools_dir, r"^fd(find)? \d")
    if path:
        tools.append(Tool("fd", "rust", [path, "-u", "^$"], [path, "-u", "."], line_count,
                          version=version))
    path, version = find_program(["bfs"], tools_dir, r"^bfs \d")
    if path:
        tools.append(Tool("bfs", "other", [path, "{}", "-false"], [path, "{}"], below,
                          version=version))
    return tools


def command_for(command, tree):
    """The tree goes where `{}` is, or at the end."""
    if "{}" in command:
        return [tree if part == "{}" else part for part in command]
    return [*command, tree]


# Trees

@dataclasses.dataclass
class Tree:
    name: str
    path: str
    names: int = 0
    total: int = 0
    root_bytes: int = 0


def make_trees(wanted, base, scale, built):
    """Made beside their place and renamed, so that what is there is whole."""
    trees = []
    for name in wanted:
        share = scale * TREES[name] if name not in ("small", "empty") else 100
        path = os.path.join(base, f"{name}-{share}")
        if not os.path.isdir(path):
            say(f"making {path}")
            part = path + ".part"
            subprocess.run(["rm", "-rf", part], check=True)
            if name == "empty":
                os.mkdir(part)
            else:
                run(built["tree"], name, part, str(share))
            os.rename(part, path)
        trees.append(Tree(name, path))
    return trees


# Samples

class Machine:
    """Its CPUs and what others take of them, its caches, and the launcher."""

    def __init__(self, launcher, patience_s):
        self.launcher = launcher
        self.patience_s = patience_s
        self.environment = dict(os.environ, LC_ALL="C", NO_COLOR="1", HOME="/nonexistent")
        self.cold_reason = None if os.geteuid() == 0 else "not root"

    @staticmethod
    def busy_ticks():
        """Time that our CPUs were not idle; waiting for a disk is idle."""
        total = 0
        with open("/proc/stat") as file:
            for line in file:
                field, *values = line.split()
                if field.startswith("cpu") and field[3:].isdigit() and int(field[3:]) in CPUS:
                    user, nice, system, _idle, _iowait, irq, softirq, steal = map(int, values[:8])
                    total += user + nice + system + irq + softirq + steal
        return total

    def wait_until_idle(self):
        told = time.monotonic()
        while self.patience_s > 0:
            before, start = self.busy_ticks(), time.perf_counter()
            time.sleep(0.1)
            elapsed = time.perf_counter() - start
            share = (self.busy_ticks() - before) / TICKS_PER_SECOND / (elapsed * len(CPUS))
            # A tick is a tenth of this look at one CPU: one for each is no sign of anybody.
            if share <= FOREIGN_MAX + 1 / (TICKS_PER_SECOND * elapsed):
                return
            if time.monotonic() - told > 30:
                told = time.monotonic()
                say(f"waiting: {share:.0%} busy, {self.patience_s:.0f} s of patience left")
            time.sleep(0.4)
            self.patience_s -= 0.5

    def launch(self, command, repeats):
        before, start = self.busy_ticks(), time.perf_counter()
        told = run(self.launcher, str(repeats), *command, env=self.environment)
        elapsed = time.perf_counter() - start
        busy_s = (self.busy_ticks() - before) / TICKS_PER_SECOND
        wall_ns, user_us, system_us, peak_kib, status = map(int, told.split())
        foreign = max(0.0, busy_s - (user_us + system_us) / 1e6) / (elapsed * len(CPUS))
        return dict(wall_s=wall_ns / 1e9 / repeats, cpu_s=(user_us + system_us) / 1e6 / repeats,
                    user_s=user_us / 1e6 / repeats, peak_kib=peak_kib, status=status,
                    foreign=round(foreign, 3), repeats=repeats)

    def sample(self, command, repeats=1, prepare=None):
        """One sample that nobody disturbed, and those that were dropped before it."""
        dropped = []
        while True:
            self.wait_until_idle()
            if prepare:
                prepare()
            result = self.launch(command, repeats)
            result["is_clean"] = result["foreign"] <= FOREIGN_MAX
            if result["is_clean"] or self.patience_s <= 0:
                return result, dropped
            dropped.append(result)
            self.patience_s -= result["wall_s"] * repeats


def drop_caches():
    os.sync()
    with open("/proc/sys/vm/drop_caches", "w") as file:
        file.write("3")


class Cell:
    """All samples of one tool on one tree in one mode."""

    def __init__(self, tool, note=""):
        self.tool = tool
        self.note = note
        self.is_valid = True
        self.repeats = 1
        self.samples = []
        self.dropped = []

    def exclude(self, reason):
        self.is_valid = False
        self.note = reason

    def kept(self):
        clean = [sample for sample in self.samples if sample["is_clean"]]
        return clean if len(clean) * 2 > len(self.samples) else self.samples

    @property
    def is_disturbed(self):
        return not all(sample["is_clean"] for sample in self.kept())

    def median(self, key):
        return statistics.median(sample[key] for sample in self.kept())

    @property
    def wall_s(self):
        return self.median("wall_s")

    @property
    def cpu_s(self):
        return self.median("cpu_s")

    @property
    def peak_mib(self):
        return self.median("peak_kib") / 1024

    def raw(self):
        return dict(tool=self.tool.name, command=self.tool.timed, is_valid=self.is_valid,
                    note=self.note, samples=self.samples, dropped=self.dropped)


class Case:
    """One mode (`warm`, `cold`, `list`) on one tree: a cell for each tool."""

    def __init__(self, mode, tree, cells):
        self.mode = mode
        self.tree = tree
        self.cells = cells

    def valid(self, keep=lambda tool: True):
        return [cell for cell in self.cells
                if cell.is_valid and cell.samples and keep(cell.tool)]

    def fastest(self, keep):
        return min(self.valid(keep), key=lambda cell: cell.wall_s, default=None)

    def ours(self):
        return self.fastest(lambda tool: tool.family == "ours")

    def floor(self):
        return self.fastest(lambda tool: tool.family == "floor")

    def gnu(self):
        return self.fastest(lambda tool: tool.family == "gnu")

    def fastest_rust(self):
        return self.fastest(lambda tool: tool.family == "rust")

    def peers(self):
        return self.valid(lambda tool: tool.family not in ("ours", "floor"))

    def measure(self, machine, rounds, prepare=None):
        for turn in range(rounds):
            say(f"{self.mode} {self.tree.name}: round {turn + 1} of {rounds}, "
                f"{machine.patience_s:.0f} s of patience left")
            cells = [cell for cell in self.cells if cell.is_valid]
            first = turn % max(1, len(cells))
            for cell in cells[first:] + cells[:first]:
                command = command_for(cell.tool.timed, self.tree.path)
                ready = (lambda: prepare(cell.tool)) if prepare else None
                sample, dropped = machine.sample(command, cell.repeats, ready)
                cell.dropped += dropped
                cell.samples.append(sample)
                if sample["status"]:
                    cell.exclude(f"failed when timed: {ending(sample['status'])}")


def ending(status):
    """A wait status in words."""
    return f"signal {status & 0x7f}" if status & 0x7f else f"exit code {status >> 8}"


class Suite:
    def __init__(self, arguments, built):
        self.arguments = arguments
        base = os.path.join(os.path.abspath(arguments.dir), "fdu-walk")
        os.makedirs(base, exist_ok=True)
        self.built = built
        self.machine = Machine(build_launcher(base), arguments.patience)
        # What the tools are started on before a cold run, so that only the tree is cold.
        self.empty = make_trees(["empty"], base, arguments.scale, built)[0].path
        self.usage = usage_tools(built, arguments.tools, self.empty)
        self.listing = list_tools(built, arguments.tools)
        self.trees = make_trees(arguments.only, base, arguments.scale, built)
        for path in arguments.real:
            name = "real-" + os.path.basename(os.path.abspath(path))
            self.trees.append(Tree(name, os.path.abspath(path)))
        self.least_kib = self.machine.launch(["true"], 1)["peak_kib"]
        self.cases = []
        self.checks = []

    def ask(self, command, tree):
        """What a tool prints, how it ended, and how long it took."""
        start = time.perf_counter()
        try:
            told = subprocess.run(command_for(command, tree.path), stdout=subprocess.PIPE,
                                  stderr=subprocess.DEVNULL, stdin=subprocess.DEVNULL,
                                  env=self.machine.environment, timeout=600)
        except subprocess.TimeoutExpired:
            return "", "takes over 10 minutes", 600
        code = told.returncode
        end = "" if code == 0 else f"signal {-code}" if code < 0 else f"exit code {code}"
        return told.stdout.decode(errors="replace"), end, time.perf_counter() - start

    def verify(self, tools, tree, expected, judge):
        """A cell for each tool; those are valid whose totals are right."""
        cells = []
        for tool in tools:
            cell = Cell(tool)
            text, end, elapsed_s = self.ask(tool.total, tree)
            try:
                told = tool.read(text)
            except (ValueError, IndexError, AttributeError):
                told = None
            if end:
                cell.exclude(f"fails: {end}")
            elif told is None:
                cell.exclude("prints no total")
            else:
                judge(cell, told, expected)
            if not cell.is_valid:
                say(f"{tree.name}: {tool.name}: {cell.note}")
            cell.repeats = max(1, min(200, round(self.arguments.sample / max(elapsed_s, 1e-4))))
            cells.append(cell)
        return cells

    def judge_total(self, tree):
        def judge(cell, told, expected):
            unit = cell.tool.unit
            told *= unit
            right = -(-expected // unit) * unit
            if told == right:
                return
            difference = f"{told - right:+,} bytes, {(told - right) / max(right, 1):+.1%}"
            if told + tree.root_bytes == right:
                cell.note = "leaves out the tree's own block"
            elif cell.tool.family == "floor":
                cell.note = f"counts every link ({difference})"
            elif cell.tool.family == "ours":
                sys.exit(f"void: fdu's total of {tree.path} is wrong: {difference}")
            else:
                cell.exclude(f"wrong total: {difference}")
        return judge

    @staticmethod
    def judge_count(cell, told, expected):
        if told == expected or (cell.tool.family == "ours" and told == expected + 1):
            return
        if cell.tool.family == "ours":
            sys.exit(f"void: fdu's walk counts {told:,} names, not {expected:,}")
        cell.exclude(f"wrong count: {told - expected:+,} names")

    def check_options(self, tree):
        """Options whose totals must be GNU du's too, where ours has them."""
        gnu = next(tool for tool in self.usage if tool.family == "gnu")
        ours = next(tool for tool in self.usage if tool.family == "ours")
        if ours.unit != 1:
            return
        options = [["-x"], ["-l"]]
        version = re.search(r"(\d+)\.(\d+)", gnu.version)
        # Apparent sizes of directories count before 9.2.
        if version and tuple(map(int, version.groups())) >= (9, 2):
            options.append(["--apparent-size"])
        for option in options:
            right = self.ask(gnu.total + option, tree)
            told = self.ask(ours.total + option, tree)
            if told[1]:
                say(f"{tree.name}: fdu {option[0]}: {told[1]}")
            elif first_number(told[0]) != first_number(right[0]):
                sys.exit(f"void: fdu {option[0]} of {tree.path} is not GNU du's")
            else:
                self.checks.append(f"{tree.name} {option[0]}")

    def warm_and_verify(self, tree):
        say(f"verifying {tree.name}")
        gnu = next(tool for tool in self.usage if tool.family == "gnu")
        text, end, _ = self.ask(gnu.total, tree)
        if end:
            sys.exit(f"GNU du on {tree.path}: {end}")
        tree.total = gnu.read(text)
        tree.root_bytes = os.lstat(tree.path).st_blocks * 512
        tree.names = int(run(self.built["floor"], "-w", "1", tree.path).split()[0])
        cells = self.verify(self.usage, tree, tree.total, self.judge_total(tree))
        self.check_options(tree)
        return Case("warm", tree, cells)

    def touch(self, tool):
        drop_caches()
        subprocess.run(command_for(tool.timed, self.empty), stdout=subprocess.DEVNULL,
                       stderr=subprocess.DEVNULL, stdin=subprocess.DEVNULL,
                       env=self.machine.environment)
        time.sleep(0.1)

    def cold_cells(self, warm):
        """Tools that were right when warm, at their own number of threads and at ours."""
        cells = []
        for known in warm.cells:
            variants = [known.tool]
            if known.is_valid and known.tool.threads:
                variants += [known.tool.with_threads(n) for n in self.arguments.cold_threads]
            elif known.is_valid and known.tool.family == "floor":
                variants += [
                    dataclasses.replace(known.tool, name=f"floor, {n} threads",
                                        timed=[known.tool.timed[0], str(n)])
                    for n in self.arguments.cold_threads if n != len(CPUS)]
            for tool in variants:
                cell = Cell(tool, known.note)
                cell.is_valid = known.is_valid
                cells.append(cell)
        return cells

    def run(self):
        for tree in self.trees:
            warm = self.warm_and_verify(tree)
            warm.measure(self.machine, self.arguments.rounds)
            self.cases.append(warm)
            is_real = tree.name not in TREES
            if tree.name in LIST_TREES or is_real:
                cells = self.verify(self.listing, tree, tree.names, self.judge_count)
                listing = Case("list", tree, cells)
                listing.measure(self.machine, self.arguments.rounds)
                self.cases.append(listing)
            if self.arguments.cold_rounds and (tree.name in COLD_TREES or is_real):
                if self.machine.cold_reason:
                    say(f"no cold runs: {self.machine.cold_reason}")
                    continue
                cold = Case("cold", tree, self.cold_cells(warm))
                cold.measure(self.machine, self.arguments.cold_rounds, self.touch)
                self.cases.append(cold)


# Goals

def goals(cases):
    """The rows of the goals' table: what, goal, figure, whether it is met (None: not measured)."""
    rows = []

    def add(case, what, goal, figure, is_met, cells):
        mark = "~" if any(cell.is_disturbed for cell in cells) else ""
        rows.append(dict(case=f"{case.mode} {case.tree.name}", what=what, goal=goal,
                         figure=figure + mark, is_met=is_met))

    def faster(case, peer, what, least):
        ours = case.ours()
        if ours is None or peer is None:
            rows.append(dict(case=f"{case.mode} {case.tree.name}", what=what,
                             goal=f"≥ {least:g}×", figure="nobody to compare with", is_met=None))
            return
        ratio = peer.wall_s / ours.wall_s
        add(case, what, f"≥ {least:g}×", f"{ratio:.2f}× ({peer.tool.name})", ratio >= least,
            [ours, peer])

    for case in cases:
        ours, name, peers = case.ours(), case.tree.name, case.peers()
        if ours is None:
            continue
        fastest = min(peers, key=lambda cell: cell.wall_s, default=None)
        if case.mode == "list":
            for peer in peers:
                if peer.tool.name in ("fd", "bfs"):
                    faster(case, peer, f"list only, against {peer.tool.name}", 1.2)
            continue
        if case.mode == "cold":
            faster(case, fastest, "against the fastest peer at its best thread count", 1.3)
            continue
        if name == "empty":
            continue
        faster(case, case.fastest_rust(), "against the fastest Rust peer", 1.3)
        if name == "mixed":
            faster(case, case.gnu(), "against GNU du", 2)
        if name == "snap":
            faster(case, fastest, "hard-link snapshots, against the fastest peer", 2)
        if name == "small":
            faster(case, case.gnu(), "no slower than GNU du", 1)
        floor = case.floor()
        if floor:
            ratio = ours.wall_s / floor.wall_s
            add(case, "against the floor at the same thread count", "≤ 1.15×", f"{ratio:.2f}×",
                ratio <= 1.15, [ours, floor])
        if fastest:
            least = min(peers, key=lambda cell: cell.cpu_s)
            ratio = ours.cpu_s / fastest.cpu_s
            add(case, "CPU per entry, against the fastest peer", "≤ 1×",
                f"{ratio:.2f}× ({fastest.tool.name}; {ours.cpu_s / least.cpu_s:.2f}× the "
                f"thriftiest, {least.tool.name})", ratio <= 1, [ours, fastest, least])
        leanest = min((cell for cell in peers if cell.tool.is_parallel),
                      key=lambda cell: cell.peak_mib, default=None)
        if name == "flat" and leanest:
            add(case, f"peak memory, {case.tree.names:,} names, the leanest parallel peer's",
                f"≤ {leanest.peak_mib:.1f} MiB", f"{ours.peak_mib:.1f} MiB ({leanest.tool.name})",
                ours.peak_mib <= leanest.peak_mib, [])
    return rows


def met(row):
    return {True: "met", False: "**not met**", None: "–"}[row["is_met"]]


# Results

def milliseconds(seconds):
    figure = seconds * 1000
    digits = 0 if figure >= 100 else 1 if figure >= 10 else 2
    return f"{figure:.{digits}f}"


def over(value, reference):
    return f"{value / reference:.2f}" if reference else "–"


def table(case):
    gnu, rust, floor = case.gnu(), case.fastest_rust(), case.floor()
    first = "find" if case.mode == "list" else "GNU du"
    lines = [f"| tool | wall ms | / {first} | / fastest Rust peer | / floor | CPU ms "
             f"| CPU / {first} | CPU µs per name | peak MiB | samples (dropped) | |",
             "|---|---|---|---|---|---|---|---|---|---|---|"]
    valid = sorted(case.valid(), key=lambda cell: cell.wall_s)
    for cell in valid:
        name = f"**{cell.tool.name}**" if cell.tool.family == "ours" else cell.tool.name
        ratios = [over(cell.wall_s, other and other.wall_s) for other in (gnu, rust, floor)]
        mark = "~" if cell.is_disturbed else ""
        lines.append(
            f"| {name} | {mark}{milliseconds(cell.wall_s)} | {' | '.join(ratios)} "
            f"| {milliseconds(cell.cpu_s)} | {over(cell.cpu_s, gnu and gnu.cpu_s)} "
            f"| {over(cell.cpu_s * 1e6, case.tree.names)} | {cell.peak_mib:.1f} "
            f"| {len(cell.kept())} ({len(cell.dropped)}) | {cell.note} |")
    for cell in case.cells:
        if cell not in valid:
            lines.append(f"| {cell.tool.name} {'| – ' * 9}| {cell.note} |")
    return lines


def plot(cases, title):
    """Wall time of each tool as a bar, a panel for each case, GNU's serial tool being 1."""
    bar, left, width, columns, longest = 15, 130, 460, 2, 2.5
    colours = dict(ours="#d9480f", floor="#868e96", gnu="#1c7ed6", rust="#74c0fc", other="#b197fc")
    panels = []
    for case in cases:
        gnu = case.gnu()
        if gnu is None:
            continue
        best = {}
        # Of a tool's thread counts the best.
        for cell in case.valid():
            name = re.split(r" \(|,", cell.tool.name)[0]
            if name not in best or cell.wall_s < best[name].wall_s:
                best[name] = cell
        panels.append((case, gnu.wall_s, sorted(best.items(), key=lambda item: item[1].wall_s)))
    out = []
    bottoms = [40] * columns

    def text(x, y, words, extra=""):
        out.append(f'<text x="{x:.0f}" y="{y:.0f}" {extra}>{html.escape(words)}</text>')

    for case, unit_s, bars in panels:
        column = bottoms.index(min(bottoms))
        x, y = column * width, bottoms[column]
        text(x + 10, y + 12, f"{case.mode} {case.tree.name}", 'font-weight="bold"')
        scale = (width - left - 130) / longest
        one = x + left + scale
        y += 18
        out.append(f'<line x1="{one:.0f}" x2="{one:.0f}" y1="{y}" y2="{y + bar * len(bars)}" '
                   'stroke="#adb5bd" stroke-dasharray="3 3"/>')
        for name, cell in bars:
            ratio = cell.wall_s / unit_s
            length = max(1, min(ratio, longest) * scale)
            text(x + left - 6, y + 11, name, 'text-anchor="end"')
            out.append(f'<rect x="{x + left}" y="{y + 2}" width="{length:.1f}" '
                       f'height="{bar - 4}" fill="{colours[cell.tool.family]}"/>')
            more = " →" if ratio > longest else ""
            text(x + left + length + 5, y + 11,
                 f"{ratio:.2f}{more}  ({milliseconds(cell.wall_s)} ms)")
            y += bar
        bottoms[column] = y + 18
    height = max(bottoms) + 4
    head = (f'<svg xmlns="http://www.w3.org/2000/svg" width="{columns * width}" height="{height}" '
            'font-family="sans-serif" font-size="11" fill="#212529">'
            '<rect width="100%" height="100%" fill="white"/>'
            f'<text x="10" y="20" font-size="13">{html.escape(title)}</text>')
    return "\n".join([head, *out, "</svg>", ""])


def commit_of(root):
    try:
        commit = run("git", "-C", root, "rev-parse", "--short", "HEAD",
                     stderr=subprocess.DEVNULL).strip()
        status = run("git", "-C", root, "status", "--porcelain", "--untracked-files=no")
    except (subprocess.CalledProcessError, FileNotFoundError):
        return "unknown"
    return commit + ("-dirty" if status else "")


def describe_machine(directory):
    with open("/proc/cpuinfo") as file:
        cpu = next((line.split(": ")[1].strip() for line in file
                    if line.startswith("model name")), platform.machine())
    with open("/proc/meminfo") as file:
        memory_gib = int(file.readline().split()[1]) / 2**20
    disk = run("findmnt", "-no", "FSTYPE", "-T", directory).strip()
    return (f"{cpu}, {len(CPUS)} CPUs, {memory_gib:.0f} GiB, Linux {platform.release()}, {disk}")


def write_results(suite, started, load, seconds):
    arguments = suite.arguments
    commit = commit_of(arguments.root)
    name = f"{started}-walk-{commit}" + ("-quick" if arguments.quick else "")
    machine = describe_machine(arguments.dir)
    tools = suite.usage + suite.listing
    versions = {tool.name: tool.version for tool in tools if tool.version}
    rows = goals(suite.cases)
    dropped = sum(len(cell.dropped) for case in suite.cases for cell in case.cells)
    samples = sum(len(cell.samples) for case in suite.cases for cell in case.cells)
    disturbed = sum(not sample["is_clean"] for case in suite.cases for cell in case.cells
                    for sample in cell.samples)
    os.makedirs(arguments.results, exist_ok=True)
    path = os.path.join(arguments.results, name)
    with open(path + ".json", "w") as file:
        json.dump(dict(machine=machine, commit=commit, load_before=load, scale=arguments.scale,
                       rounds=arguments.rounds, cold_rounds=arguments.cold_rounds,
                       is_quick=arguments.quick, seconds=round(seconds), versions=versions,
                       least_peak_kib=suite.least_kib, dropped=dropped, options=suite.checks,
                       goals=rows,
                       cases=[dict(mode=case.mode, tree=dataclasses.asdict(case.tree),
                                   cells=[cell.raw() for cell in case.cells])
                              for case in suite.cases]), file, indent=1)
    with open(path + ".svg", "w") as file:
        file.write(plot(suite.cases, f"{name}: wall time / that of GNU du (find when listing)"))
    lines = [f"# {name}", ""]
    if arguments.quick:
        lines += ["**A trial on small trees: these figures measure nothing.**", ""]
    lines += [
        f"{machine}. Load before: {load:.1f}. Scale {arguments.scale}; {arguments.rounds} rounds "
        f"warm, {arguments.cold_rounds} cold, interleaved; medians; ratios are time / time of the "
        f"reference. {samples} samples; {dropped} more were dropped because others used over "
        f"{FOREIGN_MAX:.0%} of the CPUs, {disturbed} stand although they did. Medians with such "
        "in them are marked `~`: their wall time proves nothing.", "",
        "Totals of all tools were compared with GNU du's first; tools whose were not equal take "
        "no part. Also equal to GNU du's: "
        + (", ".join(suite.checks) if suite.checks else "no further options were checked")
        + f". No peak can be told below {suite.least_kib / 1024:.1f} MiB.", "",
        "Versions: " + "; ".join(f"{tool}: {version}" for tool, version in versions.items()) + ".",
        "", f"![wall time]({name}.svg)", "", "## Goals", "",
        "| case | what | goal | figure | |", "|---|---|---|---|---|"]
    lines += [f"| {row['case']} | {row['what']} | {row['goal']} | {row['figure']} | {met(row)} |"
              for row in rows]
    titles = dict(warm="Warm totals", list="Listing, warm", cold="Cold totals")
    for mode, title in titles.items():
        for case in suite.cases:
            if case.mode == mode:
                lines += ["", f"## {title}: {case.tree.name} ({case.tree.names:,} names)", "",
                          *table(case)]
    with open(path + ".md", "w") as file:
        file.write("\n".join(lines) + "\n")
    for row in rows:
        print(f"{row['case']:<12} {row['what']:<54} {row['goal']:<10} {row['figure']:<30} "
              f"{met(row).strip('*')}")
    print(path + ".md")


# Building

def build(root):
    """Ours and the examples; where cargo put them, by name."""
    say("building fdu and its examples")
    told = run("cargo", "build", "--release", "-p", "fdu", "--bins", "--examples",
               "--message-format=json", cwd=root)
    messages = [json.loads(line) for line in told.splitlines() if line.startswith("{")]
    built = {message["target"]["name"]: message["executable"] for message in messages
             if message.get("executable")}
    missing = {"fdu", "tree", "floor", "list"} - built.keys()
    if missing:
        sys.exit(f"cargo made no {', '.join(sorted(missing))}")
    return built


def build_launcher(base):
    """Static where that can be linked, as it is smaller then."""
    source, program = os.path.join(base, "launcher.rs"), os.path.join(base, "launcher")
    with open(source, "w") as file:
        file.write(LAUNCHER)
    command = ["rustc", "--edition=2021", "-O", "-o", program, source]
    static = subprocess.run([*command, "-C", "target-feature=+crt-static"],
                            stderr=subprocess.DEVNULL)
    if static.returncode:
        subprocess.run(command, check=True)
    return program


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--install", metavar="DIR", help="install the peers there, and end")
    parser.add_argument("--dir", help="where the trees are, or are made")
    parser.add_argument("--tools", metavar="DIR", help="where to look for peers before PATH")
    parser.add_argument("--only", default=",".join(TREES), help="trees, by comma")
    parser.add_argument("--real", action="append", default=[], metavar="PATH",
                        help="measure this directory too; nobody may change it meanwhile")
    parser.add_argument("--scale", type=int, help="size of the trees in percent (default 100)")
    parser.add_argument("--rounds", type=int, help="warm rounds (default 9)")
    parser.add_argument("--cold-rounds", type=int, help="cold rounds, 0 for none (default 4)")
    parser.add_argument("--cold-threads", default="8,16",
                        help="thread counts of peers when cold, besides their own choice")
    parser.add_argument("--patience", type=float, metavar="SECONDS",
                        help="how long to wait for others to stop, in all (default 1800)")
    parser.add_argument("--quick", action="store_true", help="a trial on small trees")
    parser.add_argument("--root", default=ROOT, help="the workspace to build")
    parser.add_argument("--results", metavar="DIR", help="default: bench/results there")
    arguments = parser.parse_args()
    if arguments.install:
        sys.exit(install(arguments.install))
    if not arguments.dir:
        parser.error("--dir is needed")
    # A sample lasts at least this long, in as many runs as that takes: /proc/stat counts 10 ms.
    arguments.sample = 0.1 if arguments.quick else 0.3
    usual = dict(scale=1, rounds=2, cold_rounds=1, patience=10.0) if arguments.quick else \
        dict(scale=100, rounds=9, cold_rounds=4, patience=1800.0)
    for key, value in usual.items():
        if getattr(arguments, key) is None:
            setattr(arguments, key, value)
    arguments.only = arguments.only.split(",")
    unknown = set(arguments.only) - TREES.keys()
    if unknown:
        parser.error(f"no such tree: {', '.join(sorted(unknown))}")
    arguments.cold_threads = [int(n) for n in arguments.cold_threads.split(",") if n]
    arguments.results = arguments.results or os.path.join(arguments.root, "bench/results")
    load, started = os.getloadavg()[0], time.strftime("%Y-%m-%d-%H%M")
    start = time.monotonic()
    suite = Suite(arguments, build(arguments.root))
    suite.run()
    write_results(suite, started, load, time.monotonic() - start)


if __name__ == "__main__":
    main()
