"""How long from the start of a process to its first answer, and how much memory does it take?

All are started in turn, round after round; figures are medians over the rounds, and so are the ratios, which are taken
within each round. Memory is read after the first answer; the guard's is that of all its processes.
"""

import argparse
import json
import statistics
import time
from pathlib import Path

from client import (
    FASTMCP,
    FASTMCP_MISSING,
    HOST,
    LEGACY,
    MODERN,
    PROVIDER,
    RELAY,
    Connection,
    Target,
    connect,
    table,
    targets,
)

HELLO = b"hello"
INFO = Target("gleitzeit-host, host/info", HOST.command, request=b'{"jsonrpc":"2.0","id":1,"method":"host/info"}\n')
MEMORY = {"rss": "RSS MB", "pss": "PSS MB", "guard_rss": "guard RSS", "guard_pss": "guard PSS"}
REACHES = {RELAY.name: 1.5, FASTMCP.name: 1 / 8}  # the host's time, as a share of theirs

Samples = dict[str, list[float]]  # of one target: by measure, one of each a round


def first_answer(target: Target) -> dict[str, float]:
    """Start the target, greet and ask it once; return the milliseconds that took, and the memory in MB."""
    request = target.request if target is INFO else target.request % (1, HELLO)
    start = time.perf_counter()
    with connect(target) as connection:
        connection.greet()
        answer = json.loads(connection.ask(request))
        took = (time.perf_counter() - start) * 1000
        if "result" not in answer:
            raise RuntimeError(f"{target.name} answered {answer}")
        return {"ms": took, **memory(connection)}


def memory(connection: Connection) -> dict[str, float]:
    """Return the resident and proportional memory of the target's process, and of the guard's below it."""
    own = connection.process.pid
    guards = [pid for pid in descendants(own) if b"guard.py" in Path(f"/proc/{pid}/cmdline").read_bytes()]
    return {
        "rss": megabytes("Rss", [own]),
        "pss": megabytes("Pss", [own]),
        "guard_rss": megabytes("Rss", guards),
        "guard_pss": megabytes("Pss", guards),
    }


def megabytes(kind: str, pids: list[int]) -> float:
    """Return the sum of one kind of memory of some processes."""
    kib = 0
    for pid in pids:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
        kib += sum(int(line.split()[1]) for line in lines if line.startswith(f"{kind}:"))
    return kib * 1024 / 1e6


def descendants(pid: int) -> list[int]:
    """Return the pids below a process."""
    children = [
        int(child) for task in Path(f"/proc/{pid}/task").iterdir() for child in (task / "children").read_text().split()
    ]
    return [*children, *(below for child in children for below in descendants(child))]


def run(rounds: int) -> dict[str, Samples]:
    """Measure; return the samples by target."""
    samples: dict[str, Samples] = {}
    for _ in range(rounds):
        for target in (*targets(), INFO):
            for name, value in first_answer(target).items():
                samples.setdefault(target.name, {}).setdefault(name, []).append(value)
    return samples


def ratios(samples: dict[str, Samples]) -> dict[str, float]:
    """Return the host's time as a share of the others', where they were measured."""
    host = samples[HOST.name]["ms"]
    return {
        name: statistics.median(of / to for of, to in zip(host, samples[name]["ms"], strict=True))
        for name in REACHES
        if name in samples
    }


def report(samples: dict[str, Samples]) -> str:
    """Return the table and the ratios as text."""
    rows = []
    for target in (PROVIDER, RELAY, HOST, INFO, LEGACY, MODERN, FASTMCP):
        of = samples.get(target.name)
        if of:
            sizes = [statistics.median(of[name]) for name in MEMORY]
            times = [f"{statistics.median(of['ms']):.0f}", f"{min(of['ms']):.0f}"]
            rows.append([target.name, *times, *(f"{size:.1f}" if size else "" for size in sizes)])
        else:
            rows.append([target.name, "", "", FASTMCP_MISSING])
    lines = []
    for name, ratio in ratios(samples).items():
        outcome = "met" if ratio <= REACHES[name] else "MISSED"
        lines.append(f"{HOST.name} / {name}: {ratio:.3f} (at most {REACHES[name]:g}: {outcome})")
    return "\n".join([table(["first answer", "median ms", "least ms", *MEMORY.values()], rows), "", *lines])


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--quick", action="store_true", help="one round: only shows that everything runs")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    options = parser.parse_args()
    if options.rounds < 1:
        parser.error("--rounds: at least 1")
    samples = run(1 if options.quick else options.rounds)
    if options.json:
        figures = {
            name: {measured: statistics.median(values) for measured, values in by.items()}
            for name, by in samples.items()
        }
        found = [
            {"to": name, "ratio": ratio, "reach": REACHES[name], "met": ratio <= REACHES[name]}
            for name, ratio in ratios(samples).items()
        ]
        print(json.dumps({"figures": figures, "ratios": found}))
    else:
        print(report(samples))


if __name__ == "__main__":
    main()
