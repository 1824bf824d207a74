"""The commands, one module each: ``add_parser`` declares it, the function it sets as ``run`` does it."""

from . import demo, doctor, protect

COMMANDS = (protect, demo, doctor)
