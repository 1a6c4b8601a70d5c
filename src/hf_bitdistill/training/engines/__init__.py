"""FSDP, DeepSpeed and DDP: what differs by engine."""
