"""The pack's own wire types: what travels between its nodes."""

from comfy_api.latest import io

DinoV2Type = io.Custom("SMRA_DINOV2")


SeaRaftType = io.Custom("SMRA_SEA_RAFT")


SamType = io.Custom("SMRA_SAM")
"""Each is the path of a weight file: a finished run must not load a net, and none stays in memory."""


Schedule = io.Custom("SMRA_SCHEDULE")
