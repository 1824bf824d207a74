"""How well faces are protected, in numbers and pictures."""
