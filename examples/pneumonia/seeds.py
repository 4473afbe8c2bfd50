"""The demo over several seeds as one Markdown table.

python examples/pneumonia/seeds.py out/demo-0 out/demo-1 out/demo-2
"""

import sys
from pathlib import Path
from statistics import fmean

from ayni_coordinator.demo.results import fedavg_bytes, read_results

runs = [read_results(Path(folder)) for folder in sys.argv[1:]]
if not runs:
    sys.exit("Name the folders that `ayni demo --out FOLDER --seed SEED` made.")


def mean_and_range(values: list[float], form: str = ".3f") -> str:
    return f"{fmean(values):{form}} [{min(values):{form}}, {max(values):{form}}]"


print(f"Seeds {', '.join(str(results.seed) for results, _ in runs)}: mean [least, greatest].\n")
COLUMNS = [
    *("site", "role", "images", "AUC alone", "AUC federated", "difference", "balanced accuracy alone"),
    *("... federated", "traffic, MB", "of fp32 FedAvg"),
]
print(f"| {' | '.join(COLUMNS)} |\n|{'---|' * len(COLUMNS)}")
for sites in zip(*(results.sites for results, _ in runs), strict=True):
    plain = [fedavg_bytes(results.rounds, extras.num_weights) for results, extras in runs]
    cells = [
        sites[0].name,
        sites[0].role,
        str(sites[0].num_train),
        mean_and_range([site.local.auc for site in sites]),
        mean_and_range([site.federated.auc for site in sites]),
        mean_and_range([site.gain for site in sites], "+.3f"),
        mean_and_range([site.local.balanced_accuracy for site in sites]),
        mean_and_range([site.federated.balanced_accuracy for site in sites]),
        f"{fmean(site.num_bytes / 1e6 for site in sites):.2f}",
        f"{fmean(site.num_bytes / whole for site, whole in zip(sites, plain, strict=True)):.1%}",
    ]
    print(f"| {' | '.join(cells)} |")
print(f"\nWall time, s: {mean_and_range([results.wall_s for results, _ in runs], '.0f')}.")
