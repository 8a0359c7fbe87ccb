"""What a CUDA card does: the GPU tests, memory told and measured, and the time of steps and evaluations."""
