"""Tests of transformers that do not apply to our classes: pattern of `Class::test` -> reason."""

NOT_APPLICABLE = {
    r"(CLLM4Rec|LCRec)\w+::test_resize_(tokens_)?embeddings": (
        "rows of users, items and semantic IDs follow the words, so the table of words is never resized; refused by name"
    ),
    r"(CLLM4Rec|LCRec)\w+::test_save_load$": (
        "generation_config.json is kept in the folder of a class that does not generate, for the language model inside"
    ),
    r"::test_model_base_model_prefix": "base_model_prefix is empty, see docs/architecture.md",
    r"::test_internal_model_config_and_subconfig_are_same": "the backbone's configuration is copied, see docs/architecture.md",
    r"::test_model_weights_reload_no_missing_tied_weights": "from_pretrained refuses a folder that lacks weights",
    r"CLLM4Rec\w+::test_training": "CLLM4RecModel has no loss, and a head leaves the table of the other side without a gradient",
    r"::test_model_rope_scaling_from_config": "the test reads last_hidden_state of the first class, which is a head here",
    r"::test_generation_tester_mixin_inheritance": "the suite takes the mixin where the source has it",
    r"CLLM4Rec\w+::test_(generate_from_(random_)?inputs_embeds|inputs_embeds|inputs_embeds_matches_input_ids)": (
        "the test looks rows of users and items up in get_input_embeddings(), which holds words; embed_tokens() holds all"
    ),
    r"CLLM4RecWordsTest::test_assisted_decoding": "a test of 5.6, which fails for a plain Llama of 5.23 as well",
    r"CLLM4Rec\w+::test_assisted_decoding": "an assistant reads token ids, so prompts with ID tokens are refused by name",
    r"CLLM4Rec\w+::test_\w+_generate_dict_outputs?$": (
        "without a cache the test expects whole prompts in each step; a prompt of embeddings always has one"
    ),
    r"CLLM4RecTokenizerTest::test_(add_tokens|add_special_tokens|added_token|special_tokens_initialization|pad_token_init)": (
        "new tokens would take ids of users; refused by name"
    ),
    r"CLLM4RecTokenizerTest::test_(get_vocab|save_and_load_tokenizer|tokenize_special_tokens)$": "as above: the test adds tokens",
    r"CLLM4RecTokenizerTest::test_(training_new_tokenizer|bos_token_with_add_bos|eos_token)": "as above: the vocabulary is fixed",
    r"TokenizerTest::test_rust_tokenizer_add_prefix_space_0": "fails for the plain byte-level tokenizer as well",
}
