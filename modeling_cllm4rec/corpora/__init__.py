"""From raw interactions and texts to what the models are trained on."""
