"""Oscillations of weights: the tracker, the regularizer, and their fused passes."""
