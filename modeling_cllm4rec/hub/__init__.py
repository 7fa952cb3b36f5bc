"""What a saved folder shows on the Hub."""
