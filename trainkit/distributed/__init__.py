"""The processes of a job, their collectives, and the shard of a tensor that each process holds."""
