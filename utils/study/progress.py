"""How far several runs are: a line for each that goes on and one for all, with the time to the end.

On a terminal the lines are bars that move; elsewhere a line is printed when a run ends, and every minute of one that
goes on.
"""

import sys
import time
from collections.abc import Sequence
from typing import Any

from tqdm import tqdm

EVERY = 60.0  # seconds between two lines about one run where no terminal shows bars
ENOUGH = 0.02  # share of a run from which its speed is told


class Progress:
    """What is shown of the runs.

    Args:
        labels: of the runs.
        at_once: most that go on at the same time.
        clock: seconds.
    """

    def __init__(self, labels: Sequence[str], at_once: int, clock=time.monotonic):
        self.labels, self.at_once, self.clock = labels, at_once, clock
        self.width = max(map(len, labels), default=0)
        self.going: dict[int, dict[str, Any]] = {}
        self.lasted: list[float] = []  # seconds of those that were trained to their end
        self.ended = self.failed = 0
        self.bars = bool(sys.stderr) and sys.stderr.isatty()

    def __enter__(self) -> "Progress":
        self.all = self._bar(0, len(self.labels), "runs") if self.bars else None
        self.free = [*range(1, self.at_once + 1)]
        return self

    def __exit__(self, *_) -> None:
        for bar in [run["bar"] for run in self.going.values()] + [self.all]:
            if bar is not None:
                bar.close()

    def begin(self, i: int) -> None:
        """A run is taken up."""
        run = {"began": self.clock(), "share": 0.0, "first": None, "said": self.clock(), "place": None, "bar": None}
        if self.bars:
            run["place"] = self.free.pop(0)
            run["bar"] = self._bar(run["place"], 100, self.labels[i])
        self.going[i] = run

    def update(self, i: int, share: float | None, words: str) -> None:
        """A run is so far, None where it waits."""
        run = self.going[i]
        if share is not None:
            run["first"] = (self.clock(), share) if run["first"] is None else run["first"]
            run["share"] = share
        rest = self._rest_of(run)
        told = words + ("" if rest is None else f", {duration(rest)} left")
        if run["bar"] is not None:
            run["bar"].n = round(100 * run["share"])
            run["bar"].set_postfix_str(told)
        elif self.clock() - run["said"] >= EVERY:
            run["said"] = self.clock()
            self.say(f"{self.labels[i]:<{self.width}}  {round(100 * run['share'])} %, {told}")

    def end(self, i: int, outcome: Any) -> None:
        """What became of a run, see `utils.study.jobs.Outcome`."""
        run = self.going.pop(i)
        if run["bar"] is not None:
            run["bar"].close()
            self.free.insert(0, run["place"])
        self.ended += 1
        self.failed += outcome.state != "finished"
        if outcome.state == "finished" and outcome.trained:
            self.lasted.append(outcome.seconds)
        self.say(f"{self.labels[i]:<{self.width}}  {_told(outcome)}")
        if self.all is not None:
            self.all.update()
        else:
            self.say(self.summary())
        self.tick()

    def tick(self) -> None:
        """Time has passed."""
        if self.all is not None:
            self.all.set_postfix_str(self.summary())

    def summary(self) -> str:
        """One line for all."""
        failed = f", {self.failed} of them not finished" if self.failed else ""
        rest = self.rest()
        left = "" if not rest else f", {duration(rest)} to the end"
        return f"{self.ended} of {len(self.labels)} runs ended{failed}{left}"

    def rest(self) -> float | None:
        """Seconds to the end of all, None while no run has told its speed."""
        rests = [self._rest_of(run) for run in self.going.values()]
        known = [rest for rest in rests if rest is not None]
        whole = [*self.lasted, *(rest / (1 - run["share"]) for run, rest in zip(self.going.values(), rests, strict=True)
                                 if rest is not None and run["share"] < 1)]  # fmt: skip
        waiting = len(self.labels) - self.ended - len(self.going)
        if not whole:
            return 0.0 if not self.going and not waiting else None
        mean = sum(whole) / len(whole)
        unknown = waiting + len(rests) - len(known)
        return max([*known, (sum(known) + unknown * mean) / self.at_once])

    def _rest_of(self, run: dict[str, Any]) -> float | None:
        """Seconds to the end of a run, from what it did since it was first heard of."""
        if run["first"] is None or run["share"] - run["first"][1] < ENOUGH:
            return None
        since, share = run["first"]
        return (self.clock() - since) * (1 - run["share"]) / (run["share"] - share)

    def say(self, words: str) -> None:
        """A line that stays."""
        if self.bars:
            tqdm.write(words, file=sys.stderr)
        else:
            print(words, flush=True)

    def _bar(self, place: int, total: int, name: str) -> tqdm:
        form = "{desc} {percentage:3.0f}% |{bar:20}|{postfix}"
        return tqdm(total=total, desc=f"{name:<{max(self.width, 4)}}", position=place, leave=False, bar_format=form)


def duration(seconds: float) -> str:
    """'40 s', '3 min', '2 h 05 min'."""
    seconds = round(seconds)
    if seconds < 100:
        return f"{seconds} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60:02} min"


def _told(outcome: Any) -> str:
    if outcome.state != "finished":
        return f"{outcome.state}{': ' * bool(outcome.reason)}{outcome.reason}"
    scores = [f"{name} {values['acc']:.2f}" for name, values in outcome.metrics.items() if "acc" in values]
    how = f"finished in {duration(outcome.seconds)}" if outcome.trained else "was finished before"
    return ", ".join([how, *scores])
