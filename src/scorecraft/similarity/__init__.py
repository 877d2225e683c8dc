"""Similarity scores `s(x, x')`: metric and contrastive learning objectives, their miners, samplers and metrics."""
