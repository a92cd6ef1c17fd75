"""The processes of a job: who they are, what they agree on, and the shard of a tensor that each holds."""
