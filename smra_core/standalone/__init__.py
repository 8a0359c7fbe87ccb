"""WAN loaded from files by diffusers, and videos from prompts: what ComfyUI does itself."""
