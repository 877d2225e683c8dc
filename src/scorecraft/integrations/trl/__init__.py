"""TRL: trainers, callbacks and reward functions.

Every module imports TRL by itself, so that one is not paid for by the use of another.
"""
