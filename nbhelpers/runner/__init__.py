"""What runs notebooks: command line, plan, execution, sweeps and repetitions. Imported by none."""
