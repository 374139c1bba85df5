"""The page about a measurement: what was found right, how fast, and where the time goes."""

from collections.abc import Sequence

from benchmarks.gpu.lines import Line, Lines, beams_of


def page(lines: Lines, picture: str | None = None) -> str:
    sections = {
        "Is it right": (_tests, _fp32_tokens, _logits, _company),
        "How fast": (_speech, _requests, _official),
        "Where the time goes": (_steps, _encoder, _joins, _profile),
        "The card by itself": (_card, _attention),
        "What was not measured": (_left_out,),
    }
    parts = [_head(lines)]
    if picture:
        parts.append(f"![Milliseconds a step, and what the card allows]({picture})")
    for title, tables in sections.items():
        told = [text for table in tables if (text := table(lines))]
        parts += [f"## {title}", *told] if told else []
    return "\n\n".join(parts) + "\n"


def _table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Markdown; empty where there are no rows. Numbers to three figures."""
    if not rows:
        return ""
    aligned = [":--", *["--:"] * (len(head) - 1)]
    body = [[_cell(value) for value in row] for row in rows]
    return "\n".join(f"| {' | '.join(row)} |" for row in [list(head), aligned, *body])


def _cell(value: object) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
    return str(value)


def _windows(count: int) -> str:
    return f"{count} window" if count == 1 else f"{count} windows"


def _over(value: float, floor: float | None) -> str | None:
    return f"{value / floor:.1f}×" if floor else None


def _head(lines: Lines) -> str:
    begins, device = lines.of("all", "begin"), lines.last("environment", "device")
    versions = lines.last("environment", "versions")
    commands = "\n".join(f"    {line['command']}" for line in begins)
    named = ("python", "torch", "cuda", "cudnn", "numpy", "numba", "triton")
    told = ", ".join(f"{name} {versions[name]}" for name in named if versions.get(name))
    dates = ", ".join(sorted({line["date"] for line in begins}))
    rehearsal = ""
    if any(line["tiny"] for line in begins):
        rehearsal = (
            "**A rehearsal with tiny models: no figure here means anything.**\n\n"
        )
    return f"""# The engine on a GPU

{rehearsal}{commands}

{dates}; {device.get("name", "?")} ({device.get("nvidia_smi") or "no driver asked"}), {device.get("cores", "?")} cores of {device.get("cpu", "?")}; {told}.
"Least" is what the card allows: bytes that must be read over the rate of a copy, operations over the rate of a large product in
half precision, both measured in the same run."""


def _tests(lines: Lines) -> str:
    tests = lines.last("tests", "tests")
    if not tests:
        return ""
    counts = ", ".join(f"{number} {kind}" for kind, number in tests["counts"].items())
    text = f"The engine's tests on the device, in fp32: {counts or 'cut short'}."
    text += "".join(f"\n- {name}" for name in tests["names"])
    waits = [
        [line["beams"], line["join"], line["step"], line["step_of_others"]]
        for line in lines.of("tests", "waits")
    ]
    head = ["beams", "waits of a join", "of a step", "of a step of other windows"]
    return "\n\n".join(filter(None, [text, _table(head, waits)]))


def _fp32_tokens(lines: Lines) -> str:
    rows = [
        [
            line["case"],
            line["recordings"],
            line["equal"],
            line["texts_equal"],
            "; ".join(
                f"{d['recording']} at token {d['at']}" for d in line["different"]
            ),
        ]
        for line in lines.of("fidelity", "fp32 tokens")
    ]
    head = ["fp32 against official", "recordings", "tokens equal", "texts", "different"]
    return _table(head, rows)


def _logits(lines: Lines) -> str:
    found = lines.of("fidelity", "logits")
    if not found:
        return ""
    rows = []
    for name in found[0]["errors"]:
        errors = [line["errors"][name] for line in found if name in line["errors"]]
        medians = sorted(error["median"] for error in errors)
        rows.append(
            [
                name,
                len(errors),
                medians[len(medians) // 2],
                max(error["max"] for error in errors),
                _sum_of(found, "choices_other_than_fp32", name),
                _most_of(found, "largest_margin_lost", name),
            ]
        )
    head = ["logits, far from official fp32", "recordings", "median", "largest"]
    head += ["other choices", "margin lost at most"]
    return _table(head, rows)


def _sum_of(lines: Sequence[Line], field: str, name: str) -> int | None:
    values = [line[field][name] for line in lines if name in line[field]]
    return sum(values) if values else None


def _most_of(lines: Sequence[Line], field: str, name: str) -> float | None:
    return max(
        (line[field][name] for line in lines if name in line[field]), default=None
    )


def _company(lines: Lines) -> str:
    found = lines.of("fidelity", "company")
    if not found:
        return ""
    tokens = sum(line["tokens_equal"] for line in found)
    bits = sum(line["bits_equal"] for line in found)
    return (
        f"Alone and among {found[0]['others']} others, of {len(found)} recordings: {tokens} with equal tokens,"
        f" {bits} equal to the last bit."
    )


def _speech(lines: Lines) -> str:
    rows: list[list[object]] = []
    official = {line["case"]: line for line in lines.of("speech", "official")}
    for line in lines.of("speech", "engine"):
        one_by_one = official.get(line["case"], {}).get("times_real_time")
        rows.append(
            [
                f"{line['case']}, {line['at_once']} at once",
                line["requests"],
                line["times_real_time"],
                one_by_one and line["times_real_time"] / one_by_one,
                line["latency_p50_s"],
                line["latency_p95_s"],
                line["occupancy"],
                line["busy_percent"],
                f"{line['texts_equal']} of {line['texts_compared']}",
            ]
        )
    rows += [
        [f"official, {case}", line["requests"], line["times_real_time"], 1.0]
        + [None] * 5
        for case, line in official.items()
    ]
    head = ["base, real speech, fp16", "requests", "× real time", "× official"]
    head += ["p50 s", "p95 s", "windows in a step", "GPU busy %", "texts equal"]
    return _table(head, rows)


def _requests(lines: Lines) -> str:
    rows = []
    for line in lines.of("end-to-end", "requests"):
        work, least = lines.work(line["model"]), None
        if work:
            windows, beams = line["at_once"], line["beams"]
            step = work.step(
                windows, windows * beams, columns=beams * line["steps"] // 2
            )
            window = work.encode(1) + work.cross_keys_values()
            least = 30 / (window + line["steps"] * step / windows)
        rows.append(
            [
                f"{line['model']}, {beams_of(line)}, {line['at_once']} at once",
                line["requests"],
                line["times_real_time"],
                least,
                line["latency_p50_s"],
                line["latency_p95_s"],
                line["busy_percent"],
            ]
        )
    head = ["random weights, 110 tokens a window", "requests", "× real time"]
    head += ["at the card's limit", "p50 s", "p95 s", "GPU busy %"]
    return _table(head, rows)


def _official(lines: Lines) -> str:
    rows = [
        [
            f"{line['model']}, {beams_of(line)}, {line['window']} window",
            line["cudnn_attention"],
            line["seconds"],
            1e3 * line["seconds"] / line["steps"],
            30 / line["seconds"],
        ]
        for line in lines.of("official", "window")
    ]
    head = [
        "official, one window",
        "cuDNN's attention",
        "s",
        "ms a token",
        "× real time",
    ]
    return _table(head, rows)


def _steps(lines: Lines) -> str:
    rows = []
    for line in lines.of("steps", "step"):
        least = lines.least_ms_of_step(line)
        rows.append(
            [
                f"{line['model']}, {beams_of(line)}, {_windows(line['windows'])}",
                line["ms"],
                line["ms_of_others"],
                least,
                _over(line["ms"], least),
            ]
        )
    head = ["a step", "ms", "ms where windows changed", "least ms", "over it"]
    return _table(head, rows)


def _encoder(lines: Lines) -> str:
    rows = []
    for line in lines.of("steps", "encode"):
        work = lines.work(line["model"])
        least = 1e3 * work.encode(line["windows"]) if work else None
        rows.append(
            [
                f"{line['model']}, {_windows(line['windows'])}",
                line["ms"],
                line["ms"] / line["windows"],
                least,
                _over(line["ms"], least),
            ]
        )
    return _table(["encoding", "ms", "ms a window", "least ms", "over it"], rows)


def _joins(lines: Lines) -> str:
    rows: list[list[object]] = [
        [
            f"{line['model']}, {_windows(line['windows'])}, {line['prompt']} tokens before",
            line["ms"],
        ]
        for line in lines.of("steps", "join")
    ]
    for line in lines.of("steps", "listen"):
        rows.append(
            [f"{line['model']}, keys and values of one window's audio", line["ms"]]
        )
    return _table(["reading prompts", "ms"], rows)


def _profile(lines: Lines) -> str:
    rows = [
        [
            f"{line['model']}, {line['what']}",
            line["kernels"],
            line["device_ms"],
            line["ms"],
            None if line["device_ms"] is None else 1 - line["device_ms"] / line["ms"],
        ]
        for line in lines.of("profile", "profile")
    ]
    head = ["32 windows, beam 5", "kernels", "ms of the GPU", "ms in all", "GPU idle"]
    return _table(head, rows)


def _card(lines: Lines) -> str:
    rows: list[list[object]] = []
    for line in lines.of("environment", "copy"):
        rows.append(["copy, bytes read and written, GB/s", line["bytes_per_s"] / 1e9])
    for line in lines.of("environment", "product"):
        precision = line["dtype"].removeprefix("torch.")
        rows.append([f"product in {precision}, TFLOP/s", line["flops_per_s"] / 1e12])
    for line in lines.of("environment", "launch"):
        rows.append(["an operation, µs of the host", line["host_us"]])
        rows.append(["an operation, µs until the device has done it", line["whole_us"]])
    for line in lines.of("environment", "graph"):
        rows.append(["a node of a captured graph, µs", line["node_us"]])
    for line in lines.of("environment", "host copy"):
        busy = f"{line['busy_us'] / 1e3:.2g} ms"
        what = f"copy to a device busy for {busy}, {line['way']}: µs of the host"
        rows.append([what, line["held_up_us"]])
    for line in lines.of("kernels", "layer norm"):
        rows.append(["a norm with casts around it, µs", line["with_casts_us"]])
        same = "the same bits" if line["equal"] else "other bits"
        rows.append([f"a norm without them, {same}, µs", line["directly_us"]])
    for line in lines.of("speech", "switch interval"):
        what = f"base, {line['at_once']} at once, switch interval {line['interval_s']:.1g} s: × real time"
        rows.append([what, line["times_real_time"]])
    return _table(["what", ""], rows)


def _attention(lines: Lines) -> str:
    rows = [
        [
            f"{line['place']}, {line['model']}, {_windows(line['windows'])}, {line['queries']} queries",
            line["kernel"],
            line.get("first_ms"),
            line.get("next_shape_ms"),
            line.get("ms") and 1e3 * line["ms"],
            line.get("error"),
        ]
        for line in lines.of("kernels", "attention")
    ]
    head = ["attention", "kernel", "first ms", "next shape ms", "then µs", "refused"]
    return _table(head, rows)


def _left_out(lines: Lines) -> str:
    reasons = [
        f"- {line['phase']}: {line['reason']}"
        for line in (*_ends(lines, "end"), *_ends(lines, "skipped"))
        if line["reason"] != "done"
    ]
    return "\n".join(reasons) or "Nothing: every phase came to its end."


def _ends(lines: Lines, measure: str) -> list[Line]:
    return [line for line in lines.all if line["measure"] == measure]
