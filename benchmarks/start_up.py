"""How long from the start of the process to its first answer, and how much memory does it take?

Every figure is the median over rounds in which all targets are started in turn.
"""

import argparse
import json
import statistics
import time
from collections import defaultdict
from pathlib import Path

from client import FASTMCP, HOST, RELAY, Connection, Target, connect, table, targets

INFO = b'{"jsonrpc":"2.0","id":1,"method":"host/info"}\n'


def first_answer(target: Target, request: bytes) -> tuple[float, dict[str, float]]:
    """Start the target, greet and ask it; return the milliseconds to the answer and the memory by process, MB."""
    start = time.perf_counter()
    with connect(target) as connection:
        connection.greet()
        connection.write(request)
        connection.read_line()
        took = (time.perf_counter() - start) * 1000
        return took, memory(connection)


def memory(connection: Connection) -> dict[str, float]:
    """Return the resident and proportional memory of the target, and of the guard's processes below it."""
    sizes = {"rss": 0.0, "pss": 0.0, "guard rss": 0.0, "guard pss": 0.0}
    for pid in [connection.process.pid, *descendants(connection.process.pid)]:
        command = Path(f"/proc/{pid}/cmdline").read_bytes()
        prefix = "guard " if b"guard.py" in command else ""
        if pid == connection.process.pid or prefix:
            for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
                name, _, value = line.partition(":")
                if name in ("Rss", "Pss"):
                    sizes[prefix + name.lower()] += int(value.split()[0]) / 1024
    return sizes


def descendants(pid: int) -> list[int]:
    """Return the pids below a process."""
    children = [
        int(child) for task in Path(f"/proc/{pid}/task").iterdir() for child in (task / "children").read_text().split()
    ]
    return [*children, *(below for child in children for below in descendants(child))]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    times: defaultdict[str, list[float]] = defaultdict(list)
    sizes: dict[str, dict[str, float]] = {}
    for _ in range(1 if options.quick else options.rounds):
        for target in targets():
            took, sizes[target.name] = first_answer(target, target.request(1))
            times[target.name].append(took)
        times["gleitzeit-host, host/info"].append(first_answer(HOST, INFO)[0])
    medians = {name: statistics.median(samples) for name, samples in times.items()}
    if options.json:
        print(json.dumps({"first answer, ms": medians, "memory, MB": sizes}))
        return
    rows = []
    for name, median in medians.items():
        of = sizes.get(name)
        memory_cells = [
            f"{of[kind]:.1f}" if of and of[kind] else "" for kind in ("rss", "pss", "guard rss", "guard pss")
        ]
        rows.append([name, f"{median:.0f}", f"{min(times[name]):.0f}", *memory_cells])
    print(table(["first answer", "median ms", "least ms", "RSS MB", "PSS MB", "guard RSS", "guard PSS"], rows))
    ratio = medians[HOST.name] / medians[RELAY.name]
    print(f"\nhost / relay: {ratio:.2f} (at most 1.5: {'met' if ratio <= 1.5 else 'MISSED'})")
    if FASTMCP.name in medians:
        ratio = medians[HOST.name] / medians[FASTMCP.name]
        print(f"host / FastMCP proxy: 1/{1 / ratio:.1f} (at most 1/8: {'met' if ratio <= 1 / 8 else 'MISSED'})")


if __name__ == "__main__":
    main()
