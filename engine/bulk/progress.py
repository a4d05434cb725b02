"""Count what a run of a job does, for its summary and, with --json, for a line per unit that programs can read."""

import json
from collections.abc import Iterable, Iterator, Sequence
from time import perf_counter

from lastword.bulk.job import Job, UnitResult
from lastword.bulk.plan import Unit
from lastword.cli import console, options
from lastword.errors import count

_SHORTEST = 1e-6  # the least seconds of a unit, so that no speed is infinite


class RunProgress:
    """The units that a run has finished.

    Args:
        job: the job.
        todo: the units that the run is to do.
        done: the number of units that were done before.
        lines: whether to print a JSON object on stdout for each finished unit.
    """

    def __init__(self, job: Job, todo: Iterable[Unit], done: int, *, lines: bool) -> None:
        self._job, self._lines, self._before = job, lines, done
        self._bytes_left = sum(unit.num_bytes for unit in todo)
        self._began = perf_counter()
        self._units = self._bytes_done = 0
        self._rows = self._tokens = 0

    def finish_unit(self, unit: Unit, result: UnitResult, took: float) -> None:
        """Count a unit that is done, and print its line if there is one.

        Args:
            unit: the unit.
            result: its result.
            took: the seconds that the unit took where it was done.
        """
        self._units, self._rows = self._units + 1, self._rows + result.rows
        self._tokens += result.tokens
        self._bytes_done += unit.num_bytes
        self._bytes_left -= unit.num_bytes
        if not self._lines:
            return
        left = None  # unknown while all units that are done were of empty files
        if self._bytes_done or not self._bytes_left:
            seconds = perf_counter() - self._began
            left = round(self._bytes_left * seconds / max(1, self._bytes_done), 1)
        line = {
            "unit": unit.number,
            "units": len(self._job.plan.units),
            "units_done": self._before + self._units,
            "rows": result.rows,
            "errors": result.errors,
            "tokens": result.tokens,
            "tokens_computed": result.computed,
            "tokens_cached": result.cached,
            "cut": result.cut,
            "unknown": result.unknown,
            "blank": result.blank,
            "skipped": result.skipped,
            "seconds": round(took, 3),
            "rows_per_second": round(result.rows / max(took, _SHORTEST), 1),
            "tokens_per_second": round(result.tokens / max(took, _SHORTEST), 1),
            "seconds_left": left,
        }
        console.print_lines([json.dumps(line)])

    def summary(self, claimed: Sequence[Unit], *, skip_blank: bool) -> Iterator[str]:
        """Yield the lines that end a run: its speed, and the state of the job.

        Args:
            claimed: the units that other processes are working on.
            skip_blank: whether blank texts are left out.
        """
        results = self._job.whole(self._job.results()).values()
        seconds = perf_counter() - self._began
        if self._rows:
            yield (
                f"this run: {count(self._rows, 'text')}, {self._rows / seconds:,.0f} texts/s, "
                f"{self._tokens / seconds:,.0f} tokens/s"
            )
        if claimed:
            yield f"{count(len(claimed), 'unit')} left to other processes, which are working on them"
        rows, tokens = sum(each.rows for each in results), sum(each.tokens for each in results)
        saved = tokens - sum(each.computed + each.cached for each in results)
        cut, errors = sum(each.cut for each in results), sum(each.errors for each in results)
        blank, unknown = sum(each.blank for each in results), sum(each.unknown for each in results)
        missing = len(self._job.plan.units) - len(results)
        state = f"{count(missing, 'unit')} still to do" if missing else "complete"
        parts = [f"{state}; {count(rows, 'text')}"]
        parts.append(f"{count(tokens, 'token')}, {saved:,} of them saved by sharing")
        parts.append(f"{count(cut, 'text')} cut")
        if blank:
            parts.append(
                f"{count(blank, 'blank text')} {'skipped' if skip_blank else 'embedded too'}"
            )
        if unknown:
            parts.append(f"{count(unknown, 'text')} with words that the model does not know")
        if skipped := sum(each.skipped for each in results):
            parts.append(options.skipped_line(skipped))
        if left_out := sum(bool(file.error) for file in self._job.plan.files):
            parts.append(f"{count(left_out, 'file')} left out")
        if errors:
            parts.append(f"{count(errors, 'record')} left out")
        if errors or left_out:
            parts[-1] += f" (see {self._job.folder / '_errors'})"
        yield f"{self._job.folder}: {', '.join(parts)}"
