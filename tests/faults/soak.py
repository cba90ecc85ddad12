"""`script/soak`: go on with new seeds over all classes of faults, and see one failure again.

    script/soak --hours 8                      new seeds for eight hours
    script/soak --hours 1 --only kills         the same for one class of faults (twice: for two)
    script/soak --seed 12 --cut 310.4          one power cut again; the directory is left in ./crash
    script/soak --seed 5 --fault FULL --at 17  one failing operation again
    script/soak --seed 5 --failing 17          one failing write or sync again, those of LMDB among them
    script/soak --seed 7 --room 40960          one full disk again
    script/soak --tampering 7                  one tampered store again
    script/soak --seed 7 --flips 500           flipped bits of an index again
    script/soak --seed 20 --kills 100          kills in saves and in work again (their moments are not the same)

It ends with exit code 1 when anything was lost, and with 2 when there is nothing that was asked for. What it prints for
a loss is what shows it again, for as long as the code stays as it is.
"""

import argparse
import logging
import multiprocessing
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import closing
from functools import partial
from itertools import cycle
from pathlib import Path

from tests.faults.crashes import Cut, NoSuchCutError, judge_seed, replay
from tests.faults.daemons import KilledSaves
from tests.faults.fault_disk import Fault, count_operations, judge_fault
from tests.faults.full import count_writes, growth, judge_failing, judge_full
from tests.faults.hostile import judge_flips, judge_hostile
from tests.faults.killed_work import KilledWork
from tests.mount.running import RunningMount

PROCESSES = 2
INTERRUPTED = 130
"""The exit code after Ctrl-C, as that of the command."""
KILLS_PER_SEED = 300
FULL_PER_SEED = 60
TAMPERED_PER_SEED = 50
FLIPS_PER_SEED = 500
CRASH_DIRECTORY = Path("crash")
CLASSES = ("power-cuts", "operations", "full-disks", "tampering", "flips", "kills")


class Soak:
    """What was tried so far, by class of fault, and what was lost."""

    def __init__(self, pool: ProcessPoolExecutor) -> None:
        self.tried: Counter[str] = Counter()
        self.losses = 0
        self._pool = pool

    def _note(self, kind: str, count: int, losses: Iterable[str]) -> None:
        self.tried[kind] += count
        for loss in losses:
            self.losses += 1
            print(f"LOST: {loss}", flush=True)

    def power_cuts(self, seeds: range) -> None:
        """Cut the power at every operation of these workloads."""
        for judgement in self._pool.map(judge_seed, seeds):
            self._note("power cuts", len(judgement.digests), judgement.losses)

    def failing_operations(self, seed: int) -> None:
        """Fail every operation of a workload in every way."""
        for fault in Fault:
            count = count_operations(seed, fault)
            losses = self._pool.map(partial(judge_fault, seed, fault), range(count), chunksize=8)
            self._note("failing operations", count, filter(None, losses))
        count = count_writes(seed)
        for found in self._pool.map(partial(judge_failing, seed), (range(0, count, 2), range(1, count, 2))):
            self._note("failing operations", 0, found)
        self.tried["failing operations"] += count

    def full_disks(self, seed: int) -> None:
        """Fill the disk up at places all over a workload."""
        rooms = range(seed % 97, size := growth(seed), max(size // FULL_PER_SEED, 1))
        for losses in self._pool.map(partial(judge_full, seed), (rooms[0::2], rooms[1::2])):
            self._note("full disks", 0, losses)
        self.tried["full disks"] += len(rooms)

    def tampering(self, seeds: range) -> None:
        """Tamper with a store in ways drawn from these seeds."""
        for losses in self._pool.map(judge_hostile, (seeds[0::2], seeds[1::2])):
            self._note("tampered stores", 0, losses)
        self.tried["tampered stores"] += len(seeds)

    def flips(self, seeds: range) -> None:
        """Flip bits of the index of a store that was killed."""
        for losses in self._pool.map(partial(judge_flips, count=FLIPS_PER_SEED), seeds):
            self._note("flipped bits of an index", FLIPS_PER_SEED, losses)

    def kills(self, seed: int, count: int) -> None:
        """Kill daemons and writers of real saves, and a tenth as many daemons at work on what was saved."""
        self._kills(seed, count, _kills_of_saves)
        self._kills(seed, count // 10, _kills_of_work)

    def _kills(self, seed: int, count: int, kills: Callable[[RunningMount, int], Iterator[bool]]) -> None:
        """Go on with kills, each of which tells whether it met somebody at work, until so many did."""
        with tempfile.TemporaryDirectory(prefix="ckptfs-soak-") as name:
            (Path(name) / "ckpt").mkdir()
            mount = RunningMount(Path(name) / "ckpt", Path(name) / "ckpt.store")
            mount.expected_in_log.append("interrupted")
            try:
                with closing(kills(mount, seed)) as killed:
                    while count > 0:
                        met = next(killed)
                        self.tried["kills"] += met
                        count -= met
                mount.umount()
                assert not mount.unexpected_in_log(), mount.unexpected_in_log()
            except (AssertionError, subprocess.SubprocessError) as error:
                self._note("kills", 0, [f"--seed {seed} --kills {KILLS_PER_SEED}: {error}"])
            finally:
                mount.clean_up()

    def run(self, seed: int, deadline: float, classes: Sequence[str]) -> None:
        """Go through these classes with new seeds until the time is over."""
        steps: dict[str, Callable[[], None]] = {
            "power-cuts": lambda: self.power_cuts(range(seed, seed + PROCESSES)),
            "operations": lambda: self.failing_operations(seed),
            "full-disks": lambda: self.full_disks(seed),
            "tampering": lambda: self.tampering(
                range(seed * TAMPERED_PER_SEED, (seed + PROCESSES) * TAMPERED_PER_SEED)
            ),
            "flips": lambda: self.flips(range(seed, seed + PROCESSES)),
            "kills": lambda: self.kills(seed, KILLS_PER_SEED),
        }
        while time.monotonic() < deadline:
            for name in classes:
                steps[name]()
            seed += PROCESSES
            tried = ", ".join(f"{count} {kind}" for kind, count in self.tried.items())
            print(f"up to seed {seed}: {tried}; {self.losses} lost", flush=True)


def _kills_of_saves(mount: RunningMount, seed: int) -> Iterator[bool]:
    mount.mount()
    with closing(KilledSaves(mount, seed)) as saves:
        while True:
            yield saves.kill_one()


def _kills_of_work(mount: RunningMount, seed: int) -> Iterator[bool]:
    work = KilledWork(mount, seed)
    for kind in cycle(work.kinds):
        yield work.kill_one(kind)


def _cut(text: str) -> Cut:
    operation, _, attempt = text.partition(".")
    return Cut(int(operation), int(attempt))


def main() -> int:
    """Run what the command line says."""
    parser = argparse.ArgumentParser(
        prog="soak", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--hours", type=float, default=1.0, help="how long to go on (default: 1)")
    parser.add_argument("--only", choices=CLASSES, action="append", help="a class of faults (default: all)")
    parser.add_argument("--seed", type=int, help="the first seed (default: from the clock)")
    parser.add_argument(
        "--cut", type=_cut, action="append", default=[], help="a power cut to see again; twice: and one more"
    )
    parser.add_argument("--fault", type=Fault.__getitem__, help="ERROR, FULL, SHORT or DEAD")
    parser.add_argument("--at", type=int, default=0, help="the operation that fails")
    parser.add_argument("--failing", type=int, help="the write or sync that fails")
    parser.add_argument("--room", type=int, help="the size of a disk that fills up")
    parser.add_argument("--tampering", type=int, help="the way to tamper with a store")
    parser.add_argument("--flips", type=int, help="so many flipped bits of an index")
    parser.add_argument("--kills", type=int, help="so many kills")
    args = parser.parse_args()
    seed = int(time.time()) if args.seed is None else args.seed
    print(f"seed {seed}", flush=True)
    # What stores under faults log is expected.
    logging.disable()
    with ProcessPoolExecutor(PROCESSES, multiprocessing.get_context("spawn"), initializer=_begin_process) as pool:
        soak = Soak(pool)
        try:
            losses = _judge(parser, args, soak, seed)
        except KeyboardInterrupt:
            pool.shutdown(wait=False, cancel_futures=True)
            print("interrupted; what was lost until then is said above", file=sys.stderr)
            return INTERRUPTED
    for loss in filter(None, losses):
        print(f"LOST: {loss}")
    return int(bool(soak.losses or any(losses)))


def _begin_process() -> None:
    """Leave Ctrl-C to the process that hands out the work."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    logging.disable()


def _judge(parser: argparse.ArgumentParser, args: argparse.Namespace, soak: Soak, seed: int) -> list[str]:
    """Do what was asked for and return what was lost, but for what the soak has said itself."""
    if args.cut:
        try:
            return [replay(seed, args.cut, CRASH_DIRECTORY)]
        except NoSuchCutError as error:
            parser.error(str(error))
    if args.fault:
        return [judge_fault(seed, args.fault, args.at)]
    if args.failing is not None:
        return judge_failing(seed, [args.failing])
    if args.room is not None:
        return judge_full(seed, [args.room])
    if args.tampering is not None:
        return judge_hostile([args.tampering])
    if args.flips:
        return judge_flips(seed, args.flips)
    if args.kills:
        soak.kills(seed, args.kills)
    else:
        soak.run(seed, time.monotonic() + args.hours * 3600, args.only or CLASSES)
    return []


if __name__ == "__main__":
    sys.exit(main())
