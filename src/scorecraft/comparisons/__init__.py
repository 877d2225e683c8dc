"""Comparisons on one's own data: equal budgets, the same tuning for everyone, and an answer that may be "cannot tell".

A comparison is run like a study, trial by trial, and can be interrupted and resumed; `comparison` holds what is common
to all tasks, one module per task the rest.
"""
