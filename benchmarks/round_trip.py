"""What does the host add to a call? Against the provider alone, a bare relay of the same hops, and FastMCP's proxy.

All are measured in turn, round after round, so that a machine that is slow for a while is slow for all. Figures are
medians over the rounds. A ratio is taken within each round, and its median and quartiles are given: they say more than
the quotient of two medians on a machine that others use too.
"""

import argparse
import contextlib
import json
import statistics
from dataclasses import asdict, dataclass

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

IN_FLIGHT = 32
MEGABYTE = b"x" * 1_000_000
MEASURES = {"p50": "p50 ms", "p99": "p99 ms", "throughput": f"calls/s, {IN_FLIGHT} in flight", "megabyte": "1 MB ms"}

Samples = dict[str, list[float]]  # by measure, one of each a round


@dataclass(frozen=True)
class Reach:
    """A ratio of two targets and where it should be."""

    measure: str
    of: Target
    to: Target
    reach: float
    at_least: bool = False


REACHES = [
    Reach("p50", HOST, RELAY, 1.5),
    Reach("throughput", HOST, RELAY, 0.7, at_least=True),
    Reach("megabyte", HOST, RELAY, 1.5),
    Reach("p50", LEGACY, HOST, 1.3),
    Reach("p50", MODERN, HOST, 1.3),
    Reach("throughput", LEGACY, HOST, 0.77, at_least=True),
    Reach("throughput", MODERN, HOST, 0.77, at_least=True),
    Reach("p50", FASTMCP, HOST, 40, at_least=True),
    Reach("throughput", HOST, FASTMCP, 100, at_least=True),
]


@dataclass(frozen=True)
class Verdict:
    """What became of a reach."""

    name: str
    ratio: float
    quartiles: tuple[float, float]
    reach: str
    met: bool


def measure(connections: list[Connection], samples: dict[str, Samples], seconds: float) -> None:
    """Take one round's samples: of each measure, all targets at nearly the same time."""
    for connection in connections:
        times = connection.sequential(seconds, b"hello", at_least=100)
        samples[connection.target.name]["p50"].append(times[len(times) // 2])
        samples[connection.target.name]["p99"].append(times[len(times) * 99 // 100])
    for connection in connections:
        samples[connection.target.name]["throughput"].append(connection.throughput(seconds, IN_FLIGHT))
    for connection in connections:
        times = connection.sequential(seconds, MEGABYTE, at_least=10)
        samples[connection.target.name]["megabyte"].append(times[len(times) // 2])


def run(rounds: int, seconds: float) -> dict[str, Samples]:
    """Measure; return the samples by target."""
    samples: dict[str, Samples] = {target.name: {name: [] for name in MEASURES} for target in targets()}
    with contextlib.ExitStack() as stack:
        connections = [stack.enter_context(connect(target)) for target in targets()]
        for connection in connections:
            connection.greet()
            connection.sequential(seconds, b"hello", at_least=20)  # until everything has been loaded and compiled
        for _ in range(rounds):
            measure(connections, samples, seconds)
    return samples


def verdicts(samples: dict[str, Samples]) -> list[Verdict]:
    """Compare what was measured with what should be reached."""
    found = []
    for reach in REACHES:
        if reach.of.name in samples and reach.to.name in samples:
            pairs = zip(samples[reach.of.name][reach.measure], samples[reach.to.name][reach.measure], strict=True)
            ratios = [of / to for of, to in pairs]
            low, ratio, high = statistics.quantiles(ratios, n=4) if len(ratios) > 1 else ratios * 3
            met = ratio >= reach.reach if reach.at_least else ratio <= reach.reach
            name = f"{MEASURES[reach.measure].removesuffix(' ms')}: {reach.of.name} / {reach.to.name}"
            bound = f"at {'least' if reach.at_least else 'most'} {reach.reach:g}"
            found.append(Verdict(name, ratio, (low, high), bound, met))
    return found


def report(figures: dict[str, dict[str, float]], found: list[Verdict]) -> str:
    """Return both tables as text."""
    rows = []
    for target in (PROVIDER, RELAY, HOST, LEGACY, MODERN, FASTMCP):
        of = figures.get(target.name)
        cells = (
            [f"{of['p50']:.3f}", f"{of['p99']:.3f}", f"{of['throughput']:,.0f}", f"{of['megabyte']:.2f}"]
            if of
            else ["", "", FASTMCP_MISSING]
        )
        rows.append([target.name, *cells])
    ratios = [
        [each.name, f"{each.ratio:.2f}", "{:.2f} to {:.2f}".format(*each.quartiles), each.reach, _outcome(each)]
        for each in found
    ]
    header = ["", "ratio", "quartiles", "reach", ""]
    return f"{table(['', *MEASURES.values()], rows)}\n\n{table(header, ratios)}"


def _outcome(verdict: Verdict) -> str:
    return "met" if verdict.met else "MISSED"


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--seconds", type=float, default=0.5, help="of each measure of each target in a round")
    parser.add_argument("--quick", action="store_true", help="one short round: only shows that everything runs")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    options = parser.parse_args()
    if options.rounds < 1:
        parser.error("--rounds: at least 1")
    samples = run(1, 0.1) if options.quick else run(options.rounds, options.seconds)
    figures = {
        name: {measured: statistics.median(values) for measured, values in by.items()} for name, by in samples.items()
    }
    found = verdicts(samples)
    if options.json:
        print(json.dumps({"figures": figures, "ratios": [asdict(each) for each in found]}))
    else:
        print(report(figures, found))


if __name__ == "__main__":
    main()
