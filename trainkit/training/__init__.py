"""What a Trainer consists of: its checkpoints, how long it trains, and what it says."""
