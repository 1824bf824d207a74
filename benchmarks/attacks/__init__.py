"""Attacks on protected images, one module each; every module prints its results with the chance level beside them.

DIFFPRIVACY_DATA=... python -m benchmarks.attacks [identity] [averaging] [surroundings] [seeds] [sealed] [keys]
"""
