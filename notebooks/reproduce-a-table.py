# ---
# jupyter:
#   jupytext:
#     text_representation:
#       format_name: percent
# ---

# %% [markdown]
# # Reproduce a paper's table
#
# One data set, the protocol of CLLM4Rec's paper (random split, full ranking, recall@20, recall@40, ndcg@100), several
# seeds, and the table with intervals. On a real data folder and backbone this takes hours.

# %%
import importlib.util
import subprocess
import sys

if importlib.util.find_spec("modeling_cllm4rec") is None:  # as on Colab
    subprocess.run([sys.executable, "-m", "pip", "install", "-q", "cllm4rec"], check=True)

# %% [markdown]
# ## Data and recipe
#
# `DATA` is a folder written by `cllm4rec prepare`, such as Amazon Beauty from the page that reproduces the papers, and
# `CONFIG` its recipe, such as `beauty_benchmark.yaml`, which the package brings. Without `DATA` in the environment, a
# synthetic data set and a short recipe take their place.

# %%
import os
from pathlib import Path

import yaml

DATA = os.environ.get("DATA", "")
CONFIG = os.environ.get("CONFIG", "beauty_benchmark.yaml")
BACKBONE = os.environ.get("BACKBONE", "gpt2")
METRICS = ["recall@20", "recall@40", "ndcg@100"]
SEEDS = 3
if not DATA:
    from modeling_cllm4rec.corpora.raw_data import prepare
    from modeling_cllm4rec.corpora.synthetic import make_synthetic_dataset
    from modeling_cllm4rec.training.backbones import train_backbone

    world = make_synthetic_dataset(num_users=100, num_items=60, seed=0)
    data = prepare("data/table", world.interactions, world.items, split="random", seed=42, overwrite=True)
    DATA, CONFIG, METRICS, SEEDS = str(data.folder), "short.yaml", ["recall@20", "ndcg@20"], 1
    BACKBONE = str(train_backbone(data, "runs/table-backbone", seed=0))
    recipe = {"pretrain": {"num_train_epochs": 1, "max_text_tokens": 32}, "finetune": {"num_train_epochs": 2, "tune": "full"}}
    Path(CONFIG).write_text(yaml.safe_dump({"cllm4rec": recipe}))

# %% [markdown]
# ## Run
#
# Each row runs in a process of its own. A second run continues where the first one was stopped.

# %%
from modeling_cllm4rec.commands.main import main

words = ["--data", DATA, "--config", CONFIG, "--backbone", BACKBONE, "--metrics", *METRICS, "--seeds", str(SEEDS)]
code = main(["benchmark", "quality", *words, "--models", "popularity,ease,cllm4rec", "--output", "reports/table", "--no-plots"])
assert code == 0

# %% [markdown]
# ## The table

# %%
print(Path("reports/table/report.md").read_text(encoding="utf-8")[:3000])
