"""A plain LoRA step beside those of other trainers of WAN, on the same model and the same linears."""
