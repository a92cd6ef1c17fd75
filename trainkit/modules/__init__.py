"""What is done to a user's module before it trains."""
