"""Pretraining and finetuning: objectives, one optimizer loop, checkpoints."""
