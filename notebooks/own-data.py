# ---
# jupyter:
#   jupytext:
#     text_representation:
#       format_name: percent
# ---

# %% [markdown]
# # Own data to recommendations
#
# From a table of interactions and a table of item texts to a trained CLLM4Rec, its comparison with baselines,
# recommendations, and the saved folder loaded again.

# %%
import importlib.util
import subprocess
import sys

if importlib.util.find_spec("modeling_cllm4rec") is None:  # as on Colab
    subprocess.run([sys.executable, "-m", "pip", "install", "-q", "cllm4rec"], check=True)

# %% [markdown]
# ## The tables
#
# A synthetic data set takes the place of yours. For your own data, replace the two lines by `pd.read_csv(...)`: interactions need
# `user_id` and `item_id` (strings or integers), items need `item_id` and texts such as `title`.

# %%
from modeling_cllm4rec.corpora.synthetic import make_synthetic_dataset

world = make_synthetic_dataset(num_users=200, num_items=80, seed=0, interactions_per_user=10)
interactions, items = world.interactions.to_pandas(), world.items.to_pandas()
interactions.head()

# %%
items[["item_id", "title", "categories"]].head()

# %% [markdown]
# ## Train
#
# Without `backbone`, a small GPT-2 is trained on the texts first. Pass `backbone="gpt2"`, or another causal language
# model, for better texts.

# %%
from modeling_cllm4rec import train_recommender

model = train_recommender(interactions, "runs/own-data", items=items, num_train_epochs=2)

# %% [markdown]
# ## Recommend
#
# To a known user, and to a new user with a history of three items.

# %%
known = interactions["user_id"].iloc[0]
titles = items.set_index("item_id")["title"]
found = model.recommend(users=[known], k=5).to_pandas()
found.assign(title=found["item"].map(titles))

# %%
history = interactions["item_id"].iloc[:3].tolist()
found = model.recommend(histories=[history], k=5).to_pandas()
found.assign(title=found["item"].map(titles))

# %% [markdown]
# ## Similar items, and the saved folder

# %%
from transformers import AutoModel

again = AutoModel.from_pretrained("runs/own-data")
again.similar_items(history[:1], k=5).to_pandas()
