"""SMRABooth's method in plain PyTorch: subject and motion LoRAs for a frozen WAN video model (CVPR 2026)."""

__version__ = "0.2.0"
