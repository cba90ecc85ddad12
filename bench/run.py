#!/usr/bin/env python3
"""Run a benchmark by its name: `bench/run.py storage`. docs/benchmarks.md says what each one means."""

import argparse

import curve
import history
import kernels
import pause
import priority
import shares
import speed
import storage
from peers import PEERS
from places import ROOT


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description="Measure ckptfs against other tools in the same run.")
    benchmarks = parser.add_subparsers(required=True, metavar="BENCHMARK")
    command = benchmarks.add_parser("storage", help="what a series of saves takes on the disk")
    command.add_argument("--seed", type=int, default=0, help="of the training runs that make the series")
    command.add_argument("--quick", action="store_true", help=f"only the first {storage.QUICK_SAVES} saves of each")
    names = list(storage.SERIES)
    command.add_argument(
        "--series", nargs="+", choices=names, default=names, metavar="NAME", help=f"only these of {', '.join(names)}"
    )
    names = [peer.name for peer in PEERS]
    command.add_argument(
        "--peers", nargs="*", choices=names, default=names, metavar="NAME", help=f"only these of {', '.join(names)}"
    )
    command.add_argument(
        "--plot", action="store_true", help=f"draw each series in {storage.PICTURES.relative_to(ROOT)}"
    )
    command.set_defaults(
        run=lambda arguments: storage.report(
            arguments.seed, arguments.series, arguments.peers, quick=arguments.quick, pictures=arguments.plot
        )
    )
    command = benchmarks.add_parser("speed", help="saves and loads beside a null mount and a plain directory")
    command.add_argument("--quick", action="store_true", help="fewer bytes and runs: under 3 minutes")
    command.add_argument("rows", metavar="ROW", nargs="*", help=f"only these of {', '.join(speed.ROWS)}")
    command.set_defaults(run=lambda arguments: speed.report(quick=arguments.quick, names=arguments.rows))
    command = benchmarks.add_parser("profile", help="where the daemon's processor time goes in rows of speed")
    command.add_argument("--quick", action="store_true", help="fewer bytes and runs")
    command.add_argument("rows", metavar="ROW", nargs="+", help=f"of {', '.join(speed.ROWS)}")
    command.set_defaults(run=lambda arguments: shares.report(quick=arguments.quick, names=arguments.rows))
    command = benchmarks.add_parser("curve", help="what the chunk size does to dedup, index and speed")
    command.add_argument("--seed", type=int, default=0, help="of the training runs that make the series")
    command.set_defaults(run=lambda arguments: curve.report(arguments.seed))
    command = benchmarks.add_parser("history", help="whether a long run and many runs stay as cheap as they begin")
    command.add_argument("--seed", type=int, default=0, help="of the training runs that make the series")
    command.set_defaults(run=lambda arguments: history.report(arguments.seed))
    command = benchmarks.add_parser("pause", help="how long a save or a load waits for work on what was saved before")
    command.add_argument("--quick", action="store_true", help="smaller stores")
    command.set_defaults(run=lambda arguments: pause.report(quick=arguments.quick))
    command = benchmarks.add_parser("kernels", help="the loops over every byte, in memory, on one core")
    command.set_defaults(run=lambda arguments: kernels.report())
    command = benchmarks.add_parser("priority", help="what the priority of idle work does to the loop of a mount")
    command.set_defaults(run=lambda arguments: priority.report())
    arguments = parser.parse_args()
    arguments.run(arguments)


if __name__ == "__main__":
    main()
