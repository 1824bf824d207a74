"""How the demo model was trained; see ../MODEL_CARD.md for the order of the steps and their cost."""
