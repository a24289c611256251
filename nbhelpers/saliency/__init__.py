"""Maps of where a network looks, and the sanity checks that say whether to trust them."""
