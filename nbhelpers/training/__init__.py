"""Training: a recipe says what, the trainer does it, for every task and for 2D and 3D alike."""
