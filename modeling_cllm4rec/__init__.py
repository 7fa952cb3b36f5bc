"""CLLM4Rec: a large language model that recommends, with a token of its own for every user and item (arXiv 2311.01343).

The names below are imported when they are first used, so `import modeling_cllm4rec` alone is quick and imports neither
torch nor transformers. It also teaches the Auto classes of transformers our model types: after it,
`AutoModel.from_pretrained(folder)` needs no `trust_remote_code`.

Example:
    >>> from modeling_cllm4rec import CLLM4RecConfig
    >>> CLLM4RecConfig.model_type
    'cllm4rec'
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from modeling_cllm4rec import _auto, _deprecated, systems

if TYPE_CHECKING:
    from modeling_cllm4rec.cllm4rec.configuration_cllm4rec import CLLM4RecConfig
    from modeling_cllm4rec.cllm4rec.modeling_cllm4rec import CLLM4RecForCausalLM, CLLM4RecForRecommendation, CLLM4RecModel
    from modeling_cllm4rec.cllm4rec.quickstart import train_recommender
    from modeling_cllm4rec.core.catalogue import Catalogue, Recommendations
    from modeling_cllm4rec.corpora.data_folder import RecommendationData
    from modeling_cllm4rec.lcrec.configuration_lcrec import LCRecConfig
    from modeling_cllm4rec.lcrec.configuration_rqvae import RQVAEConfig
    from modeling_cllm4rec.lcrec.constrained_decoding import ItemTrie, TrieLogitsProcessor
    from modeling_cllm4rec.lcrec.modeling_lcrec import LCRecForCausalLM, LCRecForRecommendation
    from modeling_cllm4rec.lcrec.modeling_rqvae import RQVAEModel
    from modeling_cllm4rec.tokenization.tokenization_cllm4rec import CLLM4RecTokenizer

    __version__: str

__all__ = [
    "CLLM4RecConfig",
    "CLLM4RecForCausalLM",
    "CLLM4RecForRecommendation",
    "CLLM4RecModel",
    "CLLM4RecTokenizer",
    "Catalogue",
    "ItemTrie",
    "LCRecConfig",
    "LCRecForCausalLM",
    "LCRecForRecommendation",
    "RQVAEConfig",
    "RQVAEModel",
    "RecommendationData",
    "Recommendations",
    "TrieLogitsProcessor",
    "__version__",
    "train_recommender",
]

_MODULE_OF = {
    "CLLM4RecConfig": "modeling_cllm4rec.cllm4rec.configuration_cllm4rec",
    "CLLM4RecForCausalLM": "modeling_cllm4rec.cllm4rec.modeling_cllm4rec",
    "CLLM4RecForRecommendation": "modeling_cllm4rec.cllm4rec.modeling_cllm4rec",
    "CLLM4RecModel": "modeling_cllm4rec.cllm4rec.modeling_cllm4rec",
    "CLLM4RecTokenizer": "modeling_cllm4rec.tokenization.tokenization_cllm4rec",
    "Catalogue": "modeling_cllm4rec.core.catalogue",
    "ItemTrie": "modeling_cllm4rec.lcrec.constrained_decoding",
    "LCRecConfig": "modeling_cllm4rec.lcrec.configuration_lcrec",
    "LCRecForCausalLM": "modeling_cllm4rec.lcrec.modeling_lcrec",
    "LCRecForRecommendation": "modeling_cllm4rec.lcrec.modeling_lcrec",
    "RQVAEConfig": "modeling_cllm4rec.lcrec.configuration_rqvae",
    "RQVAEModel": "modeling_cllm4rec.lcrec.modeling_rqvae",
    "RecommendationData": "modeling_cllm4rec.corpora.data_folder",
    "Recommendations": "modeling_cllm4rec.core.catalogue",
    "TrieLogitsProcessor": "modeling_cllm4rec.lcrec.constrained_decoding",
    "train_recommender": "modeling_cllm4rec.cllm4rec.quickstart",
}


def __getattr__(name: str) -> Any:
    if name == "__version__":
        return _installed_version()
    target = _auto.target_of(name)
    if name not in _MODULE_OF and target is not None:  # a class of a registered system, which the Auto classes look for here
        return systems.resolve(target)
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}; it has {', '.join(__all__)}")
    return getattr(importlib.import_module(_MODULE_OF[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def _installed_version() -> str:
    """Return the version that setup.cfg gave to the installed distribution."""
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("cllm4rec")
    except PackageNotFoundError:
        return "0+not.installed.run.pip.install"


_deprecated.install()
_auto.register()
systems.import_registered()
