"""What both training nodes share: inputs, forecast, progress, run and outputs."""
