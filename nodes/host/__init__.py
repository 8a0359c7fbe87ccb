"""Code that knows ComfyUI's internals: MODEL, VAE, CONDITIONING, IMAGE, folders and versions."""
