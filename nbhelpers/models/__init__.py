"""Networks: plain ``nn.Module`` classes, one readable file per family."""
