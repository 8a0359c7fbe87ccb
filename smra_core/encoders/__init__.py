"""Frozen teachers: what an image looks like (DINOv2), what moves (SEA-RAFT), what is the subject (SAM)."""
