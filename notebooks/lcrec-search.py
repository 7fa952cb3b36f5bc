# ---
# jupyter:
#   jupytext:
#     text_representation:
#       format_name: percent
# ---

# %% [markdown]
# # LC-Rec: search by words
#
# Semantic IDs from item texts, a language model aligned with them, and items for a query in words, with and without a
# history.

# %%
import importlib.util
import subprocess
import sys

if importlib.util.find_spec("modeling_cllm4rec") is None:  # as on Colab
    subprocess.run([sys.executable, "-m", "pip", "install", "-q", "cllm4rec"], check=True)

# %%
from modeling_cllm4rec.corpora.raw_data import prepare
from modeling_cllm4rec.corpora.synthetic import make_synthetic_dataset
from modeling_cllm4rec.training.backbones import train_backbone

world = make_synthetic_dataset(num_users=150, num_items=60, seed=0)
data = prepare("data/search", world.interactions, world.items, split="leave-one-out", seed=42, overwrite=True)

# %% [markdown]
# A small language model trained on the texts of the data takes the place of a pretrained one, such as `backbone="gpt2"`.

# %%
backbone = train_backbone(data, "runs/search-backbone", seed=0)

# %% [markdown]
# ## Semantic IDs

# %%
from modeling_cllm4rec.lcrec.arguments import AlignArguments, IndexArguments
from modeling_cllm4rec.lcrec.indexing import index_items

index_items(
    IndexArguments(
        data="data/search",
        output="runs/search-index",
        encoder=str(backbone),
        num_levels=3,
        codebook_size=8,
        hidden_dims=[64],
        latent_dim=16,
        num_train_epochs=50,
        warmup_epochs=5,
        overwrite=True,
    )
)

# %% [markdown]
# ## Align
#
# Two epochs show the steps. Lists worth reading take more: `recipes/configs/scientific_lcrec.yaml` is a recipe for a real
# data set.

# %%
from modeling_cllm4rec.lcrec.alignment import align

model, progress = align(
    AlignArguments(
        data="data/search",
        index="runs/search-index",
        backbone=str(backbone),
        output="runs/search",
        num_train_epochs=2,
        learning_rate=3e-3,
        backbone_learning_rate=1e-3,
        max_text_tokens=32,
        tasks=["seqrec", "item2index=0.5", "itemsearch=0.5"],
        eval_every=2,
        overwrite=True,
    )
)
progress.history[-1]

# %% [markdown]
# ## Search

# %%
from modeling_cllm4rec.hub.loading import load_recommender

model = load_recommender("runs/search")
titles = dict(zip(data.items["item_id"].to_pylist(), data.items["title"].to_pylist(), strict=True))
found = model.search(["something for a quiet evening"], k=5).to_pandas()
found.assign(title=found["item"].map(titles))

# %% [markdown]
# With the history of a user, the search prefers items near to it.

# %%
history = world.interactions["item_id"].to_pylist()[:3]
found = model.search(["something for a quiet evening"], histories=[history], k=5).to_pandas()
found.assign(title=found["item"].map(titles))
