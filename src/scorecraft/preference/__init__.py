"""Scores that compare answers: reward models, direct alignment, reward shaping, and the logic behind their losses."""
