"""An honest benchmark: models and strong baselines and the paper's ablations, each in a process of its own, with intervals."""
