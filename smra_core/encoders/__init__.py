"""Frozen networks that look at pictures: DINOv2 features, SEA-RAFT flow, SAM masks."""
