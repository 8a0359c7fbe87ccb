"""WAN's video decoders with a gradient: latents to pixels to optical flow and back, in little memory."""
