"""Figures, tables and claims from what a sweep left on disk, or on W&B. No torch; Optuna for one figure alone."""
