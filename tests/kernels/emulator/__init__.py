"""Runs the CUDA backend's .cu files on the CPU: see README.md."""
