"""A page in the browser to look at models: `cllm4rec app`, and the same page as a Hugging Face Space."""
