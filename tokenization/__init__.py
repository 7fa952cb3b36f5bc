"""The tokenizer of CLLM4Rec: any backbone's tokenizer, and a token for every user and item.

`CLLM4RecTokenizer` is imported at its first use, so the import of this package alone is quick and imports neither torch nor
transformers. Like `import modeling_cllm4rec`, it registers the model type `cllm4rec` with the Auto classes of transformers.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import modeling_cllm4rec as _registers_the_model_type  # noqa: F401

if TYPE_CHECKING:
    from modeling_cllm4rec.tokenization.tokenization_cllm4rec import CLLM4RecTokenizer

__all__ = ["CLLM4RecTokenizer"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}; it has {', '.join(__all__)}")
    from modeling_cllm4rec.tokenization.tokenization_cllm4rec import CLLM4RecTokenizer

    return CLLM4RecTokenizer


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
