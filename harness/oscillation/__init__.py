"""Oscillations of weights: the tracker, the regularizer, their one-pass versions."""
