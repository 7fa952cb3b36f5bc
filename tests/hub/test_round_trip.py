"""A saved folder alone is enough: moved, offline, in a fresh process that does not have the package."""

import numpy as np
import pytest
import torch

from modeling_cllm4rec.cllm4rec.modeling_cllm4rec import CLLM4RecForCausalLM, CLLM4RecForRecommendation
from modeling_cllm4rec.tokenization.tokenization_cllm4rec import CLLM4RecTokenizer

REVIEW = "<user_1> says of <item_3>:"
BACKBONES = ("gpt2", "llama")  # tied, untied
USE = """
import numpy as np
import torch
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoTokenizer

results = {}
for name, folder in arguments["folders"].items():
    autos = (AutoConfig, AutoModel, AutoModelForCausalLM, AutoTokenizer)
    loaded = [auto.from_pretrained(folder, trust_remote_code=True) for auto in autos]
    _, model, writer, tokenizer = loaded
    ids = torch.tensor([arguments["ids"]])
    with torch.no_grad():
        np.save(f"{folder}/scores.npy", model(ids).logits.numpy(), allow_pickle=False)
        np.save(f"{folder}/words.npy", writer(ids).logits.numpy(), allow_pickle=False)
    prompt = tokenizer(arguments["review"], return_tensors="pt")
    results[name] = {
        "modules": sorted({type(part).__module__.split(".")[0] for part in loaded}),
        "known": model.recommend(users=[1, 7], k=3).to_pylist(),
        "met_never": model.recommend(histories=[["ä", "B00 1"]], k=3).to_pylist(),
        "titles": model.catalogue.titles([0, 5]),
        "prompt": prompt["input_ids"].tolist(),
        "written": writer.generate(**prompt, max_new_tokens=8).tolist(),
    }
print(json.dumps(results))
"""


@pytest.fixture(scope="module")
def before(tiny_backbones, make_folder, tmp_path_factory):
    """Folders, and what the models in them answer here."""
    folders, answers = {}, {}
    for name in BACKBONES:
        folder = folders[name] = make_folder(tiny_backbones[name], tmp_path_factory.mktemp("saved") / name)
        model, writer = (class_.from_pretrained(folder) for class_ in (CLLM4RecForRecommendation, CLLM4RecForCausalLM))
        tokenizer = CLLM4RecTokenizer.from_pretrained(folder)
        prompt = tokenizer(REVIEW, return_tensors="pt")
        ids = torch.tensor([[*prompt["input_ids"][0].tolist(), len(tokenizer) - 1]])
        with torch.no_grad():
            logits = model(ids).logits.numpy(), writer(ids).logits.numpy()
        answers[name] = (
            logits,
            {
                "modules": ["transformers_modules"],
                "known": model.recommend(users=[1, 7], k=3).to_pylist(),
                "met_never": model.recommend(histories=[["ä", "B00 1"]], k=3).to_pylist(),
                "titles": ["title 0", "title 5"],
                "prompt": prompt["input_ids"].tolist(),
                "written": writer.generate(**prompt, max_new_tokens=8).tolist(),
            },
        )
    return folders, answers, ids[0].tolist()


def test_a_moved_folder_in_a_process_without_the_package(before, run, tmp_path):
    folders, answers, ids = before
    moved = {name: folder.rename(tmp_path / f"moved {name}") for name, folder in folders.items()}
    results = run(USE, folders={name: str(folder) for name, folder in moved.items()}, ids=ids, review=REVIEW)
    for name, (logits, expected) in answers.items():
        assert results[name] == expected
        for file, values in zip(("scores.npy", "words.npy"), logits, strict=True):
            np.testing.assert_array_equal(np.load(moved[name] / file, allow_pickle=False), values)
