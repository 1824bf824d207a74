"""The commands, one module each: ``add_parser`` declares it, the function it sets as ``run`` does it."""

from . import demo, doctor, evaluate, protect, recover, train_msi

COMMANDS = (protect, recover, evaluate, train_msi, demo, doctor)
