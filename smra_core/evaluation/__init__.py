"""Metrics, contact sheets, flow colors, loss and schedule plots, and the report page."""
