"""When label information grows and when it decays: short runs that differ in one setting (docs/collapse.md).

`python -m benchmarks.collapse FOLDER`. Every run keeps one JSON line in --results and is left out when it is there
already; without a folder, the table and the figure are made from these lines.
"""

import argparse
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import torch

import mira
from mira.assignment.information import max_information
from mira.data import PictureSource
from mira.data.subset import PictureSubset
from mira.distributed import ALONE
from mira.report.charts import Series, line_chart
from mira.training import load_recipe
from mira.training.auto_recipe import choose_recipe
from mira.training.batches import augmentation, crop_batches
from mira.training.prepare import prepare
from mira.training.resolve import plan, resolve
from mira.training.run_folder import initial_model
from mira.training.step import train_step, values_at

SMALL = [
    "crops.global_crops.size=32",
    "model.backbone.stem=standard",
    "model.prototypes={count: 32, freeze_epochs: 0}",
    "training.batch_size=64",
    "training.workers=0",
]
PUBLISHED = "assignment={name: mira, teacher_temperature: %s, beta: %s, target_entropy: null}"
FIXED = {
    f"temperature {temperature}, beta {name}": [PUBLISHED % (temperature, beta)]
    for temperature in (0.225, 0.125, 0.08)
    for name, beta in (("0.75 to 0.67", "[0.75, 0.6667]"), ("0.9", "[0.9, 0.9]"))
}
MIDDLE = "temperature 0.125, beta 0.75 to 0.67"
CHANGED = {
    f"{MIDDLE}; batch 16": ["training.batch_size=16"],
    f"{MIDDLE}; batch 128": ["training.batch_size=128"],
    f"{MIDDLE}; 256 prototypes": ["model.prototypes.count=256"],
    f"{MIDDLE}; head of width 16": ["model.head.width=16"],
    f"{MIDDLE}; head of width 256": ["model.head.width=256"],
    f"{MIDDLE}; a quarter of the learning rate": ["optimiser.learning_rate=3e-3"],
    f"{MIDDLE}; EMA momentum 0.99": ["teacher.momentum=[0.99, 1.0]"],
}
HELD = {"held entropy, beta 0.75 to 0.67": ["assignment.beta=[0.75, 0.6667]"], "held entropy, beta 0.9 (chosen)": []}
RUNS = FIXED | HELD | {name: [*FIXED[MIDDLE], *changes] for name, changes in CHANGED.items()}
DRAWN = (
    "temperature 0.225, beta 0.75 to 0.67",
    "temperature 0.125, beta 0.75 to 0.67",
    "temperature 0.08, beta 0.75 to 0.67",
    "held entropy, beta 0.9 (chosen)",
)
COLORS = ("#d1495b", "#edae49", "#66a182", "#2e4057")


def train(source: PictureSource, overrides: list[str], steps: int) -> dict[str, list[float]]:
    """A short run: per step the label information and the marginal entropy (shares of what is reachable), the spread
    of the teacher's cosines, how much of it two crops of an image agree on, and the gain that these predict.
    """
    device = torch.device("cpu")
    values, _ = choose_recipe(source, device, epochs=100)
    recipe = resolve(load_recipe(values, [*SMALL, *overrides]), pictures=len(source))
    schedule = plan(recipe, pictures=len(source))
    state = prepare(initial_model(recipe), recipe, device, ALONE, checkpoint=None)
    to_views = augmentation(recipe, device)
    reachable = max_information(recipe.model.prototypes.count, recipe.training.batch_size)
    curves: dict[str, list[float]] = {key: [] for key in ("information", "entropy", "spread", "agreement", "gain")}
    cosines: list[torch.Tensor] = []
    handle = state.model.prototypes.register_forward_hook(lambda *call: cosines.append(call[2].detach()))
    for step, batch in enumerate(crop_batches(recipe, source, last_step=steps)):
        cosines.clear()
        now = values_at(step, recipe, schedule)
        output = train_step(state.model, state.optimiser, to_views(batch), now, recipe, label_state=state.label_state)
        state.label_state = output.label_state
        metrics = {name: value.item() for name, value in output.metrics.items()}
        spread, agreement = spread_and_agreement(cosines[0])
        sharpness = metrics.get("teacher_temperature", now.teacher_temperature) * (1 - (now.beta or 0.0))
        curves["information"].append(metrics["label_mi"] / reachable)
        curves["entropy"].append(metrics["marginal_entropy"] / math.log(recipe.model.prototypes.count))
        curves["spread"].append(spread)
        curves["agreement"].append(agreement)
        curves["gain"].append(agreement * recipe.assignment.student_temperature / sharpness)
    handle.remove()
    return curves


def spread_and_agreement(cosines: torch.Tensor) -> tuple[float, float]:
    """Of [2, N, K]: the standard deviation over images, and the correlation of the two crops' deviations."""
    deviations = cosines - cosines.mean(1, keepdim=True)
    deviations = deviations - deviations.mean(2, keepdim=True)
    first, second = deviations
    agreement = 2 * (first * second).sum() / (first.square().sum() + second.square().sum())
    return deviations.square().mean().sqrt().item(), agreement.item()


def figure(records: dict[str, dict[str, Any]]) -> str:
    """Label information and marginal entropy over steps, side by side, with a legend."""
    panels = []
    for key, title in (("information", "label information"), ("entropy", "marginal entropy")):
        curves = [
            Series.of(name, range(1, len(records[name][key]) + 1), smoothed(records[name][key])) for name in DRAWN
        ]
        label = f"{title}, share of the reachable"
        panels.append(line_chart(curves, title=title, x_label="step", y_label=label, ceiling=("", 1.0), zero=True))
    style = "".join(f".line.s{n},.band.s{n}{{stroke:{c}}}.dot.s{n}{{fill:{c}}}" for n, c in enumerate(COLORS, 1))
    legend = "".join(
        f'<g transform="translate({20 + 360 * (place // 2)} {246 + 20 * (place % 2)})">'
        f'<rect width="14" height="4" y="-6" fill="{color}"/><text x="20" class="legend">{name}</text></g>'
        for place, (name, color) in enumerate(zip(DRAWN, COLORS, strict=True))
    )
    placed = "".join(
        panel.replace("<svg ", f'<svg x="{360 * place}" width="360" height="220" ', 1)
        for place, panel in enumerate(panels)
    )
    return (
        '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 720 280" font-family="sans-serif" font-size="11">'
        f"<style>.line{{fill:none;stroke-width:1.8}}.band{{opacity:.15}}.grid{{stroke:#ddd}}.ceiling{{stroke:#999;"
        f"stroke-dasharray:4 3}}text{{fill:#333}}.legend{{font-size:12px}}{style}</style>"
        f'<rect width="720" height="280" fill="white"/>{placed}{legend}</svg>\n'
    )


def smoothed(values: list[float], width: int = 10) -> list[float | None]:
    return [float(np.mean(values[max(place - width + 1, 0) : place + 1])) for place in range(len(values))]


def table(records: dict[str, dict[str, Any]]) -> str:
    rows = [
        "| run | gain at steps 11-30 | label information at step 1 | 30 | end | marginal entropy at the end |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for name in RUNS:
        if name in records:
            one = records[name]
            information = one["information"]
            cells = [
                np.mean(one["gain"][10:30]),
                information[0],
                np.mean(information[20:30]),
                np.mean(information[-20:]),
                np.mean(one["entropy"][-20:]),
            ]
            rows.append(f"| {name} | " + " | ".join(f"{cell:.2f}" for cell in cells) + " |")
    return "\n".join(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", nargs="?", help="of photographs; nothing draws what is there")
    parser.add_argument("--images", type=int, default=1500)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--results", type=Path, default=Path("benchmarks/results/collapse.jsonl"))
    parser.add_argument("--figure", type=Path, default=Path("docs/images/collapse.svg"))
    options = parser.parse_args()
    lines = options.results.read_text().splitlines() if options.results.is_file() else []
    records = {record["run"]: record for record in map(json.loads, lines)}
    if options.folder:
        source = mira.open_source(options.folder, split="all")
        chosen = np.sort(np.random.default_rng(0).permutation(len(source))[: options.images])
        source = PictureSubset(source, chosen)
        for name, overrides in RUNS.items():
            if name not in records:
                curves = train(source, overrides, options.steps)
                record = {"run": name, "images": len(source), "steps": options.steps}
                record |= {key: [round(value, 4) for value in curve] for key, curve in curves.items()}
                with options.results.open("a") as file:
                    file.write(json.dumps(record) + "\n")
                records[name] = record
                print(table({name: record}).splitlines()[-1], flush=True)
    print(table(records))
    if all(name in records for name in DRAWN):
        options.figure.write_text(figure(records))


if __name__ == "__main__":
    main()
