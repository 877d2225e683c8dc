"""Scores grad log p(x): denoisers, noise levels and solvers of diffusion models, guidance, exact scores."""
