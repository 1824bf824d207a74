"""Who faces are: recognizers, verification, and the energies that guide away from or toward an identity."""
