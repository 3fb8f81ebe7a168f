"""From networks and checkpoints to tickets: codes, changes of a base, dense tensors; and back."""
