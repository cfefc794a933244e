"""What a benchmark says of the machine, and where it leaves its table."""

import os
import pathlib
import sys

RESULTS = pathlib.Path(__file__).parent / "results"


def cpu() -> str:
    """The names of the processors, as the system gives them."""
    with open("/proc/cpuinfo") as file:
        names = {line.split(":")[1].strip() for line in file if line.startswith("model name")}
    return ", ".join(sorted(names))


def record(name: str, title: str, columns: list[str], row: list[str]) -> None:
    """Prints a row, and puts it into the table results/`name`.md in the place of one with the same first two cells."""
    path = RESULTS / f"{name}.md"
    lines = path.read_text().splitlines() if path.exists() else []
    rows = {tuple(line.split(" | ")[:2]): line for line in lines if line.startswith("| ")}
    header, line = (f"| {' | '.join(cells)} |" for cells in (columns, row))
    rows.pop(tuple(header.split(" | ")[:2]), None)
    rows[tuple(line.split(" | ")[:2])] = line
    script = pathlib.Path(sys.argv[0]).name
    made = (
        f"Made by `python benchmarks/{script}` on {cpu()}, {len(os.sched_getaffinity(0))} threads."
    )
    table = [header, "|---" * 2 + "|---:" * (len(columns) - 2) + "|", *rows.values()]
    RESULTS.mkdir(exist_ok=True)
    path.write_text("\n".join([f"# {title}", "", made, "", *table]) + "\n")
    print(line, flush=True)
