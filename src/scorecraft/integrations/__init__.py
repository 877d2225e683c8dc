"""Thin plug-ins for the trainers people already use, one file per host; each imports its host when it is imported."""
