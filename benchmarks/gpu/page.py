"""The page about a measurement: what was found right, how fast, and where the time goes."""

import statistics
from collections.abc import Sequence

from benchmarks.gpu.lines import Line, Lines, beams_of
from benchmarks.gpu.measure import PHASES


def page(lines: Lines, picture: str | None = None) -> str:
    sections = {
        "Is it right": (_tests, _fp32_tokens, _texts, _logits, _company, _pieces),
        "How fast": (_speech, _chunks, _requests, _official),
        "Where the time goes": (_steps, _encoder, _joins, _profile),
        "The card by itself": (_card, _attention),
        "What was not measured": (_left_out,),
    }
    parts = [_head(lines)]
    if picture:
        parts.append(
            "![Milliseconds a step, beside what the card allows, and the speed of requests]"
            f"({picture})"
        )
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


def _ratio(value: float, other: float | None) -> float | None:
    return value / other if other else None


def _over(value: float, floor: float | None) -> str | None:
    return f"{value / floor:.1f}×" if floor else None


def _head(lines: Lines) -> str:
    begins, device = lines.of("all", "begin"), lines.last("environment", "device")
    installed = lines.last("environment", "versions")
    commands = "\n".join(f"    {line['command']}" for line in begins)
    names = ("python", "torch", "cuda", "cudnn", "numpy", "numba", "triton")
    versions = ", ".join(f"{n} {installed[n]}" for n in names if installed.get(n))
    dates, codes = (
        ", ".join(sorted({line[field] for line in begins}))
        for field in ("date", "code")
    )
    driver = lines.last("environment", "driver").get("nvidia_smi", "")
    driver = driver and f" ({driver})"
    card = ""
    if device:
        machine = f"{device['cores']} cores of {device['cpu']}"
        card = f"; {device['name']}{driver}, {machine}; {versions}"
    rehearsal = ""
    if lines.rehearsed:
        rehearsal = (
            "**A rehearsal with tiny models: no figure here means anything.**\n\n"
        )
    return f"""# The engine on a GPU

{rehearsal}{commands}

{dates}; code {codes}{card}.
"Least" is what the card allows: bytes that must be read over the rate of a copy, operations over
the rate of a large product in half precision, both measured in the same run."""


def _tests(lines: Lines) -> str:
    tests = lines.last("tests", "tests")
    if not tests:
        return ""
    counts = ", ".join(f"{number} {kind}" for kind, number in tests["counts"].items())
    ended = "" if tests["status"] in (0, 1) else f"; they ended with {tests['status']}"
    text = f"The engine's tests on the device, in fp32: {counts or 'none'}{ended}."
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
            "; ".join(
                f"{d['recording']} at token {d['at']}" for d in line["different"]
            ),
        ]
        for line in lines.of("fidelity", "fp32 tokens")
    ]
    head = ["fp32 against official", "recordings", "tokens and times equal"]
    return _table([*head, "different"], rows)


def _texts(lines: Lines) -> str:
    rows = [
        [
            line["of"],
            line["recordings"],
            line["equal"],
            line["times_equal"],
            f"{line['word_edits']} of {line['words']}",
        ]
        for line in lines.of("fidelity", "fp16 texts")
    ]
    head = ["fp16 against official fp32, greedy", "recordings", "texts equal"]
    return _table([*head, "times equal", "words edited"], rows)


def _logits(lines: Lines) -> str:
    found = lines.of("fidelity", "logits")
    names = dict.fromkeys(name for line in found for name in line["errors"])
    rows = []
    for name in names:
        errors = [line["errors"][name] for line in found if name in line["errors"]]
        ratios = [
            line["errors"][name]["median"] / official
            for line in found
            if name in line["errors"]
            and (official := line["errors"]["official"]["median"])
        ]
        choices = [line["other_choices"].get(name) for line in found]
        lost = [line["margin_lost"].get(name) for line in found]
        rows.append(
            [
                name,
                len(errors),
                statistics.median(error["median"] for error in errors),
                max(error["max"] for error in errors),
                statistics.median(ratios) if ratios else None,
                None if None in choices else sum(choices),
                None if None in lost else max(lost),
            ]
        )
    head = ["logits against official fp32", "recordings", "median", "largest"]
    head += ["median over official's", "other choices", "margin lost at most"]
    return _table(head, rows)


def _company(lines: Lines) -> str:
    line = lines.last("fidelity", "company")
    if not line:
        return ""
    return (
        f"Alone and among {line['others']} others, of {line['recordings']} recordings:"
        f" {line['tokens_equal']} with equal tokens, {line['bits_equal']} equal to the last bit"
        " of their scores; average log-probabilities differ"
        f" by at most {line['avg_logprob_difference']:.2g}."
    )


def _pieces(lines: Lines) -> str:
    line = lines.last("chunks", "pieces")
    if not line:
        return ""
    return (
        f"Chunks of a long recording in fp32: {line['equal']} of {line['compared']} give"
        " the tokens that the same piece gives alone."
    )


def _speech(lines: Lines) -> str:
    official = lines.of("speech", "official")
    fastest: dict[str, float] = {}
    for line in official:
        speed = line["times_real_time"]
        fastest[line["case"]] = max(speed, fastest.get(line["case"], 0))
    rows: list[list[object]] = [
        [
            f"{line['case']}, {line['at_once']} at once",
            line["requests"],
            line["times_real_time"],
            _ratio(line["times_real_time"], fastest.get(line["case"])),
            line["latency_p50_s"],
            line["latency_p95_s"],
            line["occupancy"],
            line["busy_percent"],
        ]
        for line in lines.of("speech", "engine")
    ]
    for line in official:
        attention = " with cuDNN's attention" if line["cudnn_attention"] else ""
        what = f"official{attention}, {line['case']}"
        rows.append([what, line["requests"], line["times_real_time"], *[None] * 5])
    head = ["base, real speech", "requests", "× real time", "× official"]
    head += ["p50 s", "p95 s", "windows in a step", "GPU busy %"]
    texts = ", ".join(
        f"{line['equal']} of {line['compared']} ({line['case']})"
        for line in lines.of("speech", "texts")
    )
    told = [_table(head, rows)]
    if texts:
        told.append(f"Texts equal to official ones in the same precision: {texts}.")
    if source := lines.last("speech", "weights").get("source"):
        told.append(f"Base's weights: {source}.")
    return "\n\n".join(filter(None, told))


def _chunks(lines: Lines) -> str:
    found = lines.of("chunks", "long recording")
    whole = {line["model"]: line["seconds"] for line in found if line["way"] == "whole"}
    rows = [
        [
            f"{_weights(line)}, {beams_of(line)}, {_way(line)}",
            line["seconds"],
            line["times_real_time"],
            _ratio(whole.get(line["model"], 0.0), line["seconds"]) or None,
            line["windows"],
            line["steps"],
            line["occupancy"],
            None if line["peak_bytes"] is None else line["peak_bytes"] / 1e9,
        ]
        for line in found
    ]
    length = found[0]["audio_s"] if found else 0.0
    head = [f"one recording of {length:.0f} s", "s", "× real time", "× whole"]
    head += ["windows", "steps", "windows in a step", "GB reserved at most"]
    short = [
        [
            f"{line['requests']} at once beside {line['beside']}",
            line["slots_in_use"],
            line["latency_p50_s"],
            line["worst_s"],
        ]
        for line in lines.of("chunks", "short recordings")
    ]
    titles = ["base, short recordings", "slots in use before", "median s", "worst s"]
    return "\n\n".join(filter(None, [_table(head, rows), _table(titles, short)]))


def _weights(line: Line) -> str:
    return "base" if line["model"] == "base" else f"{line['model']}, random weights"


def _way(line: Line) -> str:
    return "whole" if line["way"] == "whole" else f"{line['chunks']} chunks"


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
                line["windows"],
                line["busy_percent"],
                line["slots"],
                line["bytes_held"] / 1e9,
            ]
        )
    tokens = lines.last("end-to-end", "requests").get("steps")
    head = [f"random weights, {tokens} tokens a window", "requests", "× real time"]
    head += ["at the card's limit", "p50 s", "p95 s", "windows", "GPU busy %"]
    head += ["slots", "GB held"]
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
    for line in lines.of("steps", "cross keys and values"):
        what = f"{line['model']}, keys and values of one window's audio"
        rows.append([what, line["ms"]])
    return _table(["reading prompts", "ms"], rows)


def _profile(lines: Lines) -> str:
    rows = [
        [
            f"{line['model']}, {line['what']}, {_windows(line['windows'])}",
            line["kernels"],
            line["device_ms"],
            line["ms"],
            None if line["device_ms"] is None else 1 - line["device_ms"] / line["ms"],
        ]
        for line in lines.of("profile", "profile")
    ]
    head = ["beam 5", "kernels", "ms of the GPU", "ms in all", "GPU idle"]
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
        what = (
            f"copy of {line['bytes']:,} bytes to a device busy for {busy},"
            f" {line['way']}: µs of the host"
        )
        rows.append([what, line["held_up_us"]])
    for line in lines.of("kernels", "layer norm"):
        rows.append(["a norm with casts around it, µs", line["with_casts_us"]])
        same = "the same bits" if line["equal"] else "other bits"
        rows.append([f"a norm without them, {same}, µs", line["directly_us"]])
    for line in lines.of("speech", "switch interval"):
        what = (
            f"base, {line['at_once']} at once,"
            f" switch interval {line['interval_s']:.1g} s: × real time"
        )
        rows.append([what, line["times_real_time"]])
    return _table(["what", ""], rows)


def _attention(lines: Lines) -> str:
    rows = [
        [
            ", ".join(
                [
                    line["place"],
                    line["model"],
                    _windows(line["windows"]),
                    f"{line['queries']} queries",
                ]
            ),
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
    ends = {
        line["phase"]: line["reason"] for line in lines.all if line["measure"] == "end"
    }
    told = [
        f"- {phase}: {ends.get(phase, 'not run, or cut off')}"
        for phase in PHASES
        if ends.get(phase) != "done"
    ]
    told += [
        f"- {line['phase']}, {line['what']}: {line['measure']}, {line['reason']}"
        for line in lines.all
        if line["measure"] in ("failed", "left out")
    ]
    return "\n".join(told) or "Nothing: every part of every phase came to its end."
