"""What was found, counted, then a line a network."""

from __future__ import annotations

from typing import Any

from benchmarks.coverage.suites import SUITES
from benchmarks.lib.rows import Line

CRASHES = {"one": "crash", "peer": "peer_crash", "half": "half_crash"}


def table(done: dict[str, Line]) -> str:
    """README.md: what was found, counted, then a line per network."""
    merged: dict[tuple[str, str], dict[str, Any]] = {}
    for row in done.values():
        crash = {CRASHES[row["part"]]: row["crash"]} if "crash" in row else {}
        merged.setdefault((row["suite"], row["name"]), {}).update(
            {k: v for k, v in row.items() if k not in ("crash", "part")} | crash
        )
    found = [r for r in merged.values() if "traced" in r or "crash" in r]
    lines = [
        "# Coverage of network families",
        "",
        "Written by `featherweight reproduce coverage table` from `rows.jsonl`. A random half of the units of every site",
        "goes at once; `graph` is the exported module, `class` the user's own class in place. An error is the largest",
        "difference to the network whose removed slices are 0, over the largest output, in float64; up to 1e-9 counts as",
        "exact. `cut` is the share of the parameters that went, `changed` how much the output moved. torch-pruning: 1.6.1,",
        "pruning ratio 0.5, output layer ignored, checked in the same way. Images are as small as the network permits.",
        "Seconds are of processor time, one thread.",
        "",
        "| | networks | traced | exact as a graph | wrong | nothing to cut | exact in class, all sites | in part | crashes |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for suite in SUITES:
        own = [r for r in found if r["suite"] == suite]
        if own:
            exact = [r for r in own if r.get("graph") == "graph" and (r.get("graph_error") or 0) <= 1e-9]
            numbers = [
                len(own),
                sum(bool(r.get("traced")) for r in own),
                len(exact),
                sum(r.get("graph") == "graph" and (r.get("graph_error") or 0) > 1e-9 for r in own),
                sum(r.get("graph") in ("frozen", "nothing") for r in own),
                sum(r.get("class") == "class" and r["class_sites"][0] == r["class_sites"][1] for r in own),
                sum(r.get("class") == "class" and r["class_sites"][0] < r["class_sites"][1] for r in own),
                sum("crash" in r for r in own),
            ]
            lines.append(f"| {suite} | " + " | ".join(map(str, numbers)) + " |")
    peers = [r for r in found if "tp" in r or "peer_crash" in r]
    if peers:
        words: dict[str, int] = {}
        for r in peers:
            word = "error" if "peer_crash" in r else r["tp"]
            words[word] = words.get(word, 0) + 1
        lines += [
            "",
            f"torch-pruning on {len(peers)} of these: " + ", ".join(f"{n} {word}" for word, n in sorted(words.items())) + ".",
        ]
        exact = [r for r in peers if r.get("tp") == "exact"]
        more = sorted(r["name"] for r in exact if r["tp_cut"] > max(r.get("class_cut", 0), r.get("graph_cut", 0)))
        lines += ["", f"Where torch-pruning is exact and cuts more: {', '.join(more) or 'nowhere'}.", *fewer(exact, more)]
    lines += drawn([r for r in found if r["suite"] == "timm"])
    head = [
        "network",
        "input",
        "parameters",
        "prunable",
        "sites",
        "graph",
        "cut",
        "changed",
        "class",
        "sites",
        "cut",
        "export",
        "analysis",
        "memory",
        "torch-pruning",
        "cut",
    ]
    lines += ["", "| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    lines += ["| " + " | ".join(line(r)) + " |" for r in sorted(found, key=lambda r: (r["suite"], r["name"]))]
    return "\n".join(lines) + "\n"


def fewer(exact: list[dict[str, Any]], more: list[str]) -> list[str]:
    """Why it cuts more there, and whether this library takes the same units."""
    lines = []
    for r in (r for r in exact if r["name"] in more):
        if "same" in r:
            same = f"{r['same_cut']:.2%}, {r['same']}" if "same_cut" in r else r["same"]
            least = f"leaves {r['tp_fewest']:.0%} of the outputs of some layer, which is no half"
            lines.append(f"- {r['name']}: it {least}: {r['tp_cut']:.2%}; this library, told to take the same units: {same}.")
        elif "tp_fewest" in r:
            lines.append(f"- {r['name']}: {r['tp_cut']:.2%} for {max(r.get('class_cut', 0), r.get('graph_cut', 0)):.2%}.")
    return ["", *lines] if lines else []


def drawn(found: list[dict[str, Any]]) -> list[str]:
    """What is asked of the networks drawn from timm's list besides: shares, and speed at half of the MACs."""
    if not found:
        return []
    timed = [r for r in found if "faster" in r]
    reached = sum(r["faster"] >= 0.85 * r["macs_ratio"] for r in timed)
    lines = [
        "",
        "## Drawn from timm's list",
        "",
        f"{len(found)} measured so far of 40 drawn by `draw` (seed 25, at most 60 M parameters, no other rule; `timm.txt`), two",
        "minutes of processor time for each part of each. Shares of the parameters that go with half of every site, exactly, in",
        "the graph and in the class; soft: where a norm's statistics may change, as counted. torch-pruning is told the heads of",
        "fused layers, and the forward of timm's classes is not rewritten for it. Speed: `prune(macs=0.5)`, 0.75 where that is",
        "refused, in ONNX Runtime, one thread, 25 rounds in turns on a busy machine: median of the ratios, and their quartiles'",
        f"distance over it. {reached} of the {len(timed)} timed reach 0.85 of the ratio of the MACs.",
        "",
        "| network | exact, graph | class | soft | torch-pruning | MACs ratio | faster | spread | |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for r in found:
        shares = [format(r[key], ".0%") if key in r else "" for key in ("graph_cut", "class_cut", "soft_cut")]
        peer = f"{r['tp']} {r['tp_cut']:.0%}" if r.get("tp_cut") is not None else r.get("peer_crash", "")[:40]
        speed = [format(r[key], ".2f") if r.get(key) is not None else "" for key in ("macs_ratio", "faster", "spread")]
        why = r.get("crash") or r.get("half_crash") or r.get("half_why") or ""
        lines.append(f"| {' | '.join([r['name'], *shares, peer, *speed, why[:90]]).replace(chr(10), ' ')} |")
    return lines


def line(r: dict[str, Any]) -> list[str]:
    def number(key: str, form: str) -> str:
        return format(r[key], form) if r.get(key) is not None else ""

    shape = " ".join("x".join(map(str, s)) for s in r.get("input", []))
    peer = ("error: " + r["peer_crash"][:60]).replace("|", "/") if "peer_crash" in r else r.get("tp", "")
    if "crash" in r or not r.get("traced"):
        why = (r.get("crash") or r.get("why") or "")[:120].replace("|", "/")
        return [r["name"], shape, number("parameters", ","), "not traced: " + why, *[""] * 10, peer, number("tp_cut", ".0%")]
    graph = "exact" if (r.get("graph_error") or 0) <= 1e-9 else number("graph_error", ".0e")
    graph = graph if r.get("graph") == "graph" else "nothing cut"
    kind = {"class": "exact", "frozen": "nothing cut"}.get(r.get("class", ""), r.get("class", ""))
    return [
        r["name"],
        shape,
        number("parameters", ","),
        number("prunable", ".0%"),
        str(r.get("sites", "")),
        graph,
        number("graph_cut", ".0%"),
        number("changed", ".1g"),
        kind,
        "/".join(map(str, r.get("class_sites", []))),
        number("class_cut", ".0%"),
        number("export_seconds", ".1f") + " s",
        number("analysis_seconds", ".2f") + " s",
        number("peak_mb", "d") + " MB",
        peer,
        number("tp_cut", ".0%"),
    ]
