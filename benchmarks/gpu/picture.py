"""A step's milliseconds beside the least, and whole requests' speed."""

from pathlib import Path

from benchmarks.gpu.lines import Line, Lines, beams_of


def plottable(lines: Lines) -> bool:
    return bool(_steps(lines) or _served(lines))


def _steps(lines: Lines) -> list[Line]:
    return lines.of("steps", "step", beams=5)


def _served(lines: Lines) -> list[Line]:
    return lines.of("end-to-end", "requests") + lines.of("speech", "engine")


def plot(lines: Lines, path: Path) -> None:
    """The path's suffix gives the format."""
    import matplotlib

    matplotlib.use("agg")
    # The same numbers give the same file.
    matplotlib.rcParams["svg.hashsalt"] = "benchmark"
    from matplotlib import pyplot

    steps, served = _steps(lines), _served(lines)
    height = 0.9 + 0.3 * max(len(steps), len(served))
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(11, height))
    names = [f"{line['model']}, {line['windows']}" for line in steps]
    left.barh(names, [line["ms"] for line in steps], color="#2f72b8", label="measured")
    if lines.machine:
        least = [lines.least_ms_of_step(line) for line in steps]
        left.barh(names, least, color="#e0913a", height=0.35, label="the card's least")
    left.set_title("a step with beam 5, by windows: ms", loc="left", fontsize=10)
    if steps:
        figure.legend(loc="upper left", ncols=2, fontsize=8, frameon=False)
    names = [
        f"{line['model']}, {line.get('case') or beams_of(line)}, {line['at_once']}"
        for line in served
    ]
    speeds = [line["times_real_time"] for line in served]
    bars = right.barh(names, speeds, color="#2f72b8")
    right.bar_label(bars, fmt="%.0f", padding=3, fontsize=8)
    right.set_title(
        "requests, by how many at once: × real time", loc="left", fontsize=10
    )
    for panel in (left, right):
        panel.invert_yaxis()
        panel.margins(x=0.12)
        panel.tick_params(labelsize=8, left=False)
        panel.spines[["top", "right", "left"]].set_visible(False)
    title = lines.last("environment", "device").get("name", "")
    if lines.rehearsed:
        title = f"A rehearsal with tiny models ({title}): no figure here means anything"
    figure.suptitle(title, fontsize=10)
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)
