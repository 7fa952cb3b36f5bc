"""What the shell runs: `cllm4rec COMMAND`, and the same functions for the files in recipes/."""
