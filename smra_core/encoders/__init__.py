"""Frozen networks that encode pictures: DINOv2 features, SEA-RAFT flow, SAM masks."""
