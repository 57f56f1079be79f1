"""What does the host add to a call? Against the provider alone, a bare relay of the same hops, and FastMCP's proxy.

Every figure is the median over rounds in which all of them are measured in turn, so that a machine that is slow for a
while is slow for all. `--json` prints the figures, `--quick` is for checking that the benchmark runs.
"""

import argparse
import contextlib
import json
import statistics
from dataclasses import dataclass, field

from client import FASTMCP, HOST, RELAY, Connection, connect, table, targets

IN_FLIGHT = 32
MEGABYTE = b"x" * 1_000_000


@dataclass
class Figures:
    """One target's samples, one of each a round."""

    p50: list[float] = field(default_factory=list)  # ms
    p99: list[float] = field(default_factory=list)  # ms
    throughput: list[float] = field(default_factory=list)  # calls/s
    megabyte: list[float] = field(default_factory=list)  # ms

    def median(self) -> dict[str, float]:
        """Return the median of each."""
        return {name: statistics.median(samples) for name, samples in vars(self).items()}


def measure(connection: Connection, figures: Figures, calls: int, seconds: float) -> None:
    """Take one round's samples."""
    fast = connection.target is not FASTMCP
    times = sorted(connection.call(number) * 1000 for number in range(calls if fast else max(20, calls // 20)))
    figures.p50.append(times[len(times) // 2])
    figures.p99.append(times[len(times) * 99 // 100])
    figures.throughput.append(connection.throughput(seconds, IN_FLIGHT))
    big = [connection.call(number, MEGABYTE) * 1000 for number in range(10 if fast else 3)]
    figures.megabyte.append(statistics.median(big))


def verdict(name: str, ratio: float, reach: float, *, at_least: bool = False) -> str:
    """Return one line about a ratio and what was to be reached."""
    met = ratio >= reach if at_least else ratio <= reach
    return f"{name}: {ratio:.2f} ({'at least' if at_least else 'at most'} {reach:g}: {'met' if met else 'MISSED'})"


def verdicts(figures: dict[str, dict[str, float]]) -> list[str]:
    """Compare the host with the relay and the proxy."""
    host, relay = figures[HOST.name], figures[RELAY.name]
    lines = [
        verdict("p50, host / relay", host["p50"] / relay["p50"], 1.5),
        verdict("throughput, host / relay", host["throughput"] / relay["throughput"], 0.7, at_least=True),
        verdict("1 MB, host / relay", host["megabyte"] / relay["megabyte"], 1.5),
    ]
    proxy = figures.get(FASTMCP.name)
    if proxy:
        lines.append(verdict("p50, proxy / host", proxy["p50"] / host["p50"], 40, at_least=True))
        lines.append(verdict("throughput, host / proxy", host["throughput"] / proxy["throughput"], 100, at_least=True))
    return lines


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--calls", type=int, default=1500, help="sequential calls a round")
    parser.add_argument("--seconds", type=float, default=1.0, help="of throughput a round")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    if options.quick:
        options.rounds, options.calls, options.seconds = 1, 200, 0.2
    figures = {target.name: Figures() for target in targets()}
    with contextlib.ExitStack() as stack:
        connections = [stack.enter_context(connect(target)) for target in targets()]
        for connection in connections:
            connection.greet()
            for number in range(100):
                connection.call(number)
        for _ in range(options.rounds):
            for connection in connections:
                measure(connection, figures[connection.target.name], options.calls, options.seconds)
    medians = {name: each.median() for name, each in figures.items()}
    if options.json:
        print(json.dumps({"figures": medians, "verdicts": verdicts(medians)}))
        return
    rows = [
        [name, f"{m['p50']:.3f}", f"{m['p99']:.3f}", f"{m['throughput']:,.0f}", f"{m['megabyte']:.2f}"]
        for name, m in medians.items()
    ]
    print(table(["", "p50 ms", "p99 ms", f"calls/s, {IN_FLIGHT} in flight", "1 MB ms"], rows))
    print("\n".join(["", *verdicts(medians)]))


if __name__ == "__main__":
    main()
