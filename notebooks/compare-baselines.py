# ---
# jupyter:
#   jupytext:
#     text_representation:
#       format_name: percent
# ---

# %% [markdown]
# # Compare baselines
#
# Popularity, EASE, neighbours by text, and their sums on one split, with intervals and paired differences: the bar that a
# language model has to pass.

# %%
import importlib.util
import subprocess
import sys

if importlib.util.find_spec("modeling_cllm4rec") is None:  # as on Colab
    subprocess.run([sys.executable, "-m", "pip", "install", "-q", "cllm4rec"], check=True)

# %%
from modeling_cllm4rec.corpora.raw_data import prepare
from modeling_cllm4rec.corpora.synthetic import make_synthetic_dataset

world = make_synthetic_dataset(num_users=300, num_items=120, seed=0)
data = prepare("data/baselines", world.interactions, world.items, split="random", seed=42, overwrite=True)
data.info["statistics"]

# %% [markdown]
# For your own data, pass your tables or files to `prepare`.

# %%
from modeling_cllm4rec.baselines import fit_baseline
from modeling_cllm4rec.evaluation.evaluator import comparison_table, evaluate

METRICS = ["recall@10", "ndcg@10"]
names = ["popularity", "itemknn", "ease", "textknn", "ease+textknn"]
reports = {name: evaluate(fit_baseline(name, data), data, "test", metrics=METRICS, progress=False) for name in names}
print(comparison_table(reports))

# %% [markdown]
# ## Differences
#
# Differences are paired by user, so they are narrower than the intervals above.

# %%
from modeling_cllm4rec.evaluation.verdicts import compare, verdicts

for sentence in verdicts(compare(reports, "ease+textknn"), "ease+textknn"):
    print(sentence)

# %% [markdown]
# ## A baseline of your own
#
# A class with `fit` and `score_histories` is measured in the same way.

# %%
import numpy as np


class Recent:
    """Count users per item; later interactions of a history weigh more."""

    def __init__(self, scores):
        self.scores, self.num_items = scores, len(scores)

    @classmethod
    def fit(cls, data):
        """Count the train split."""
        histories = data.histories("train")
        lengths = np.diff(histories.indptr)
        age = np.concatenate([np.arange(length)[::-1] for length in lengths])
        return cls(np.bincount(histories.items, 0.9**age, minlength=data.num_items).astype(np.float32))

    def score_histories(self, user_indices, histories):
        """Return the same scores for each history."""
        return np.tile(self.scores, (len(histories.indptr) - 1, 1))


reports["recent"] = evaluate(Recent.fit(data), data, "test", metrics=METRICS, progress=False)
print(comparison_table(reports))
