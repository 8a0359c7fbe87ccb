"""What WAN is: sizes, module names, noise levels, the sampler, and the interfaces that the method needs."""
