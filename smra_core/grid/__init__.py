"""Grids of subjects, motions, settings and seeds: plan, trainings and cells as tasks, and what they made."""
