"""From a network to a ticket: packing, ternary networks, tied weights, folded batch norm."""
