"""Model cards and loading for the Hub."""
