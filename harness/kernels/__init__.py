"""Passes over weights and images in C (csrc/) and Triton, and when they serve."""
